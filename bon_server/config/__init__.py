"""One typed configuration, read once and frozen at start.

    defaults < TOML file < BON_* environment < command line ──► sources ──► settings.load ──► Config

settings    every setting with its default, unit and range; an unknown key or a value out of range is a `ConfigError`
sources     reads the file, the environment and `--set table.key=value` into one mapping
specs       model specs of the command line, `synthetic:tokens=40`, and operators' code, `function:module:name`
numbers     which settings are numbers, and what each may be
options     the options of commands: a dataclass whose annotations hold the ranges, and whose docstrings are the help
security    who may reach a listener: loopback is open, any other address needs TLS and keys

No module keeps the configuration in a global: whoever needs a setting is given it.
"""
