"""Calls of AWS with a limit on each, and what goes wrong with them in words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from orchestration.errors import ConfigError, SubmitError, UnreachableError, one_line
from orchestration.extras import require

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
MAX_ATTEMPTS = 4
"""Of one call, the first included; botocore waits between them, longer each time."""

_REMEDIES: Mapping[str, str] = {
    "AccessDenied": "let your AWS identity do this; what it needs in all stands in orchestration/submit/README.md",
    "ResourceLimitExceeded": "raise that quota in the Service Quotas console, or take fewer or other hosts",
    "ResourceInUse": "give another job.name",
    "ExpiredToken": "sign in again, such as by `aws sso login`",
    "InvalidCredentials": "check this machine's clock, and the credentials that `aws sts get-caller-identity` uses",
    "NoSuchBucket": "correct the bucket's name, or make it in the region you use",
    "PreconditionFailed": "something lies there already, which another has put there: submit again",
    "Throttling": "try again in a minute",
    "ValidationException": "change the setting it comes from",
}
_ALIASES: Mapping[str, str] = {
    "AccessDeniedException": "AccessDenied",
    "UnauthorizedOperation": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "InvalidClientTokenId": "InvalidCredentials",
    "UnrecognizedClientException": "InvalidCredentials",
    "InvalidAccessKeyId": "InvalidCredentials",
    "SignatureDoesNotMatch": "InvalidCredentials",
    "InvalidSignatureException": "InvalidCredentials",
    "RequestTimeTooSkewed": "InvalidCredentials",
    "AuthFailure": "InvalidCredentials",
    "ThrottlingException": "Throttling",
    "ThrottledException": "Throttling",
    "TooManyRequestsException": "Throttling",
    "RequestLimitExceeded": "Throttling",
    "SlowDown": "Throttling",
}


def configured_region(setting: str | None) -> str | None:
    """The setting, AWS_REGION, which boto3 alone of AWS's tools does not know, its configuration's region, or None.

    Raises:
        ConfigError: The configuration cannot be read, or AWS_PROFILE names no profile of it.
    """
    if (named := setting or os.environ.get("AWS_REGION")) is not None:
        return named
    require("boto3", by="AWS", extra="sagemaker")
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        region: str | None = boto3.Session().region_name
    except BotoCoreError as error:
        raise ConfigError(f"{error}; correct AWS_PROFILE or that file, or give sagemaker.region") from error
    return region


@cache
def known_regions(service: str) -> frozenset[str]:
    """Where botocore knows a service to be, in all partitions."""
    session = _offline()
    parts = session.get_available_partitions()
    return frozenset(region for part in parts for region in session.get_available_regions(service, part))


@cache
def partition(region: str) -> tuple[str, str]:
    """The partition of a known region, and AWS's domain there: `aws` and `amazonaws.com`, `aws-cn` and …"""
    session = _offline()
    name = str(session.get_partition_for_region(region))
    parts = session.get_component("data_loader").load_data("partitions")["partitions"]
    return name, next(str(part["outputs"]["dnsSuffix"]) for part in parts if part["id"] == name)


@cache
def input_shape(service: str, operation: str) -> Any:
    """botocore's model of what an operation takes.

    Args:
        service: As botocore calls it, `sagemaker`.
        operation: As the API calls it, `CreateTrainingJob`.
    """
    return _offline().get_service_model(service).operation_model(operation).input_shape


def _offline() -> Any:
    """A session of botocore's data alone: a profile that is not there does not matter to it."""
    require("botocore", by="AWS", extra="sagemaker")
    from botocore.session import Session

    return Session(session_vars={"profile": (None, None, None, None)})


def client(service: str, region: str, endpoint: str | None = None) -> Any:
    """A boto3 client whose calls end within bounds. Raises SubmitError when the AWS configuration is broken.

    Args:
        endpoint: URL in place of AWS's own, such as a VPC endpoint's.
    """
    require("boto3", by="AWS", extra="sagemaker")
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": MAX_ATTEMPTS, "mode": "standard"},
    )
    with explained(f"{service} in {region}"):
        return boto3.Session(region_name=region).client(service, config=config, endpoint_url=endpoint)


def transfers(s3: Any) -> Any:
    """boto3's manager of uploads: many at once, large ones in parts; those not begun when one fails are not tried."""
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    return create_transfer_manager(s3, TransferConfig())


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turns what boto3 raises into SubmitError: one sentence, with the remedy where there is one; UnreachableError for
    what another try may mend.

    Args:
        doing: the start of the sentence, such as `starting the training job`.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
        transient = error_code(error) == "Throttling" or status >= 500
        raise (UnreachableError if transient else SubmitError)(
            f"{doing}: {_refusal(error, transient=transient)}"
        ) from error
    except (ConnectionError, HTTPClientError) as error:
        raise UnreachableError(f"{doing}: {one_line(error, 500).rstrip('.')}{_remedy(error)}") from error
    except EOFError as error:
        raise SubmitError(
            f"{doing}: AWS wants an MFA code, and here is no terminal; sign in by a session first"
        ) from error
    except OSError as error:  # a file of ours, or the program of a profile's `credential_process`
        raise SubmitError(f"{doing}: {one_line(error)}; is that what the file, or AWS_PROFILE, should name?") from error
    except (BotoCoreError, Boto3Error) as error:
        raise SubmitError(f"{doing}: {one_line(error, 500).rstrip('.')}{_remedy(error)}") from error


def error_code(error: Any) -> str:
    """A ClientError's code, equal ones under one name."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return _ALIASES.get(code, code)


def _refusal(error: Any, *, transient: bool) -> str:
    message = one_line(error.response.get("Error", {}).get("Message", "")).rstrip(".")
    code = error.response.get("Error", {}).get("Code", "")
    remedy = _REMEDIES.get(error_code(error)) or (_REMEDIES["Throttling"] if transient else "")
    return f"AWS refused with {code}: {message}" + (f"; {remedy}" if remedy else "")


def _remedy(error: Exception) -> str:
    from botocore import exceptions

    for kinds, remedy in (
        (
            (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError),
            "run `aws configure` or `aws sso login`, or set AWS_PROFILE",
        ),
        (
            (exceptions.SSOError, exceptions.TokenRetrievalError),
            "sign in again by `aws sso login`",
        ),
        (exceptions.ProfileNotFound, "correct AWS_PROFILE"),
        (
            (exceptions.NoRegionError, exceptions.InvalidRegionError),
            "set sagemaker.region, such as us-east-1",
        ),
        (
            (exceptions.ConnectionError, exceptions.HTTPClientError),
            "check the network, the proxy and sagemaker.region",
        ),
    ):
        if isinstance(error, kinds):
            return f"; {remedy}"
    return ""
