"""The wire: what requests may say and how answers look, one module per endpoint family. Knows no HTTP."""
