"""Small tools that every other part of the package uses: files, processes, JSON, optional packages, figures."""
