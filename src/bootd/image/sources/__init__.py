"""Where a root comes from: a folder, an archive, a container image, a distribution's suite."""
