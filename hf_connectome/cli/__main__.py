"""``python -m hf_connectome.cli``, for where the console script is not installed."""

from hf_connectome.cli import main

if __name__ == "__main__":
    main()
