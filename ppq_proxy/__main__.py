"""`python -m ppq_proxy` is `ppq-proxy`."""

from ppq_proxy.cli import main

if __name__ == "__main__":
    main()
