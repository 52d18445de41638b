"""Stage download: raw files of one domain, rendered or used in place."""

from __future__ import annotations

from prefect import flow

from flows.command import main
from flows.execution import stage_run
from flows.job import HERE, Job
from flows.proxies import all_proxies
from panoda.config import DataParams, RuntimeParams, TrackingParams


@flow(name="download")
def download(
    role: str,
    data: DataParams | None = None,
    runtime: RuntimeParams | None = None,
    tracking: TrackingParams | None = None,
    job: Job = HERE,
) -> dict[str, float]:
    """Stage download: raw files of one domain, rendered or used in place.

    Args:
        role: Which domain of section data: source, target, or a further source.
        data: Section data; null takes the params file's.
        runtime: Section runtime; null takes the params file's.
        tracking: Section tracking; null takes the params file's.
        job: Where parameters and inputs come from, where the result goes.
    """
    with stage_run("download", job, role=role, data=data, runtime=runtime, tracking=tracking) as run:
        # Imported here: torch loads while the server starts.
        from panoda.stages.download import download as stage

        with all_proxies():
            return run.finish(
                stage(
                    role=role,
                    dataset=run.params.data.domains[role].dataset,
                    out=run.out,
                    progress=run.context.progress,
                )
            )


if __name__ == "__main__":
    main(download)
