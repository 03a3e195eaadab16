"""The configuration tree, a package so that wheels carry it: one YAML a command, and its groups."""
