"""`python -m editable.benchmarks.memory`."""

from editable.benchmarks.memory import main

if __name__ == "__main__":
    main()
