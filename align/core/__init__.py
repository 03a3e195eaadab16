"""What everything stands on: errors, typed configuration, objects from configuration, files, displays."""
