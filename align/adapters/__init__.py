"""Which parameters train, and how: the choices of the group `adapter`, one small file and YAML each."""
