"""Real data sets that come with installed packages."""
