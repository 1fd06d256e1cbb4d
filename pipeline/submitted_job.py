"""What `ray job submit` tells the job that it starts."""

import json
import os

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in a submitted job, whose working folder is a copy that Ray removes."""


def job_metadata() -> dict[str, str]:
    """What is said of the job by Ray and by --metadata-json; empty where it was not submitted."""
    return json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("metadata", {})
