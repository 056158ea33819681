"""Results back to an archive over DICOMweb: ``python -m bundle send``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from scripts.data.dicom.volume import dicom_module

__all__ = ["main"]

TOKEN, USER, PASSWORD = "DICOMWEB_TOKEN", "DICOMWEB_USER", "DICOMWEB_PASSWORD"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ATTEMPTS = 4
PASSING = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


def main(*files: str, url: str) -> None:
    """Store DICOM files, such as the segmentations that inference wrote, in an archive (STOW-RS).

    An object that the archive has already is not sent again, and whether it arrived is asked before each further try.
    Who sends is said by the environment: ``DICOMWEB_TOKEN``, or ``DICOMWEB_USER`` and ``DICOMWEB_PASSWORD``; neither is
    sent over a connection that is not encrypted, unless it stays on this machine.

    Args:
        *files: the files.
        url: of the archive's DICOMweb service, http://127.0.0.1:8042/dicom-web for an Orthanc on this machine.

    Raises:
        FileNotFoundError: where a file is missing.
        ValueError: where a file is no DICOM, the URL is none, or the archive does not take it.
    """
    if not files:
        raise ValueError("send: expected DICOM files, found none.")
    client = _client(url, os.environ)
    for file in files:
        dataset = _read(Path(file))
        sent = _store(client, dataset, file)
        print(f"{file}: {'stored' if sent else 'the archive has it already'}.")


def _client(url: str, environment: Mapping[str, str]) -> Any:
    """A client that signs in as the environment says.

    Raises:
        ValueError: where the URL is none, or would show what is secret.
    """
    web = dicom_module("dicomweb_client.web")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url: expected http://HOST/PATH or https://HOST/PATH, found '{url}'.")
    if parts.username or parts.password:
        raise ValueError(f"url: name and password belong into the environment, as {USER} and {PASSWORD}.")
    token, user = environment.get(TOKEN), environment.get(USER)
    if (token or user) and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError(f"url: '{url}' is not encrypted, so that all could read the sign-in: expected https.")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    session = requests.Session()
    if not token and user:
        session.auth = (user, environment.get(PASSWORD, ""))
    logging.getLogger("retrying").setLevel(logging.CRITICAL)  # tracebacks of each attempt
    client = web.DICOMwebClient(url, session=session, headers=headers)
    client.set_http_retry_params(retry=False)  # a store is tried again here, once it is known not to have arrived
    return client


def _read(path: Path) -> Any:
    """A file as pydicom reads it.

    Raises:
        FileNotFoundError: where it is missing.
        ValueError: where it is no DICOM.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    headers = dicom_module("headers")
    with headers.quietly():
        try:
            dataset = headers.read_dataset(path)
            if dataset.StudyInstanceUID and dataset.SeriesInstanceUID and dataset.SOPInstanceUID:
                return dataset
        except Exception:  # of any type, as every part of a damaged file may be nonsense
            pass
    raise ValueError(f"{path} is no DICOM file, damaged or truncated.")


def _store(client: Any, dataset: Any, file: str) -> bool:
    """Send an object unless the archive has it; returns whether it was sent.

    Raises:
        ValueError: with the archive's last answer.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            if _is_there(client, dataset):
                return attempt > 0
            answer = client.store_instances([dataset])
            if failed := answer.get("FailedSOPSequence"):
                reason = failed[0].get("FailureReason")
                raise ValueError(f"{file}: the archive does not take it, reason {reason}.")
            return True
        except requests.HTTPError as error:
            if (response := error.response) is None:
                raise
            what = f"answer {response.status_code} {response.reason}"
            if response.status_code not in PASSING:
                break
        except (requests.ConnectionError, requests.Timeout) as error:
            what = f"no answer ({type(error).__name__})"
    raise ValueError(f"{file}: {client.base_url} does not take it: {what}.")


def _is_there(client: Any, dataset: Any) -> bool:
    found = client.search_for_instances(
        dataset.StudyInstanceUID,
        dataset.SeriesInstanceUID,
        search_filters={"SOPInstanceUID": dataset.SOPInstanceUID},
    )
    return bool(found)
