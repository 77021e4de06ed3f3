"""`python -m editable.benchmarks.insertion`."""

from editable.benchmarks.insertion import main

if __name__ == "__main__":
    main()
