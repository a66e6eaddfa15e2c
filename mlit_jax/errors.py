"""The one exception for what a user can mend."""


class UserError(Exception):
  """A fault in config, data or files; its text names the value, the place and the remedy. Exit code 2."""
