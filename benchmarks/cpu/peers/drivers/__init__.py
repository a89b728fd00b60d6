"""One module per engine, each with ``open_driver(folder, variant, num_threads)``; see ``face.OpenDriver``."""
