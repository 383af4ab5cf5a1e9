"""What each setting means, may be and does: for `ava config explain`, `ava config show --explain`, docs/settings.md."""
