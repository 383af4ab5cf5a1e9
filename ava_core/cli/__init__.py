"""The `ava` command: one module per subcommand. They parse, call the library and write outputs; no logic is here."""
