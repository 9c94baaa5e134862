"""Stock SGLang on a machine without an accelerator. Importing this has no effect; see `activate` and `hooks`."""
