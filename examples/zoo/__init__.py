"""Real models and real photographs, out of packages, to export and to measure on."""
