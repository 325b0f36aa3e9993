"""`python -m worker.simulator --host 127.0.0.1 --port 9000 [--seed 1]`."""

import argparse

import uvicorn

from shared.config.settings import load_settings
from shared.telemetry.logs import configure_logging
from worker.simulator.app import create_app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.simulator", description="A simulated exchange.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other prices")
    options = parser.parse_args()
    configure_logging(load_settings(database_url="postgresql://none", redis_url="redis://none", log_level="warning"))
    uvicorn.run(
        create_app(options.seed),
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="websockets-sansio",
        timeout_graceful_shutdown=1,  # a fault that hangs must not delay the end
    )


if __name__ == "__main__":
    main()
