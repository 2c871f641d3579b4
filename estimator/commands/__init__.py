"""The commands of `estimator`, one module each with `add_parser(commands)` and `run(args)`."""
