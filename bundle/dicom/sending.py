"""Sending of results to an archive over DICOMweb: ``python -m bundle send``."""

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
    """Store DICOM files, such as the segmentations of inference, in an archive (STOW-RS).

    An object that the archive already has is not sent again; before each retry the archive is asked whether the object
    arrived. The environment has the credentials: ``DICOMWEB_TOKEN``, or ``DICOMWEB_USER`` and ``DICOMWEB_PASSWORD``;
    they are not sent over an unencrypted connection, except within this machine.

    Args:
        *files: the files.
        url: address of the archive's DICOMweb service, http://127.0.0.1:8042/dicom-web for an Orthanc on this machine.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not DICOM, the URL is invalid, or the archive refuses a file.
    """
    if not files:
        raise ValueError("send: expected DICOM files, found none.")
    client = _client(url, os.environ)
    for file in files:
        dataset = _read(Path(file))
        sent = _store(client, dataset, file)
        print(f"{file}: {'stored' if sent else 'already in the archive'}.")


def _client(url: str, environment: Mapping[str, str]) -> Any:
    """A client with the credentials of the environment.

    Raises:
        ValueError: if the URL is invalid, or would expose credentials.
    """
    web = dicom_module("dicomweb_client.web")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url: expected http://HOST/PATH or https://HOST/PATH, found '{url}'.")
    if parts.username or parts.password:
        raise ValueError(f"url: expected no name and password in it, set {USER} and {PASSWORD} in the environment.")
    token, user = environment.get(TOKEN), environment.get(USER)
    if (token or user) and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError(f"url: '{url}' is not encrypted and would expose the credentials: expected https.")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    session = requests.Session()
    if not token and user:
        session.auth = (user, environment.get(PASSWORD, ""))
    logging.getLogger("retrying").setLevel(logging.CRITICAL)  # silences the traceback of each attempt
    client = web.DICOMwebClient(url, session=session, headers=headers)
    client.set_http_retry_params(retry=False)  # stores are retried here, after checking that the object has not arrived
    return client


def _read(path: Path) -> Any:
    """A file read by pydicom.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is not DICOM.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    headers = dicom_module("headers")
    with headers.quietly():
        try:
            dataset = headers.read_dataset(path)
            if dataset.StudyInstanceUID and dataset.SeriesInstanceUID and dataset.SOPInstanceUID:
                return dataset
        except Exception:  # of any type, because any part of the file may be damaged
            pass
    raise ValueError(f"{path} is not a DICOM file, or is damaged.")


def _store(client: Any, dataset: Any, file: str) -> bool:
    """Send an object unless the archive has it; returns whether it was sent.

    Raises:
        ValueError: if the archive refuses it, with its last answer.
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
                raise ValueError(f"{file}: the archive refuses it, reason {reason}.")
            return True
        except requests.HTTPError as error:
            if (response := error.response) is None:
                raise
            what = f"answer {response.status_code} {response.reason}"
            if response.status_code not in PASSING:
                break
        except (requests.ConnectionError, requests.Timeout) as error:
            what = f"no answer ({type(error).__name__})"
    raise ValueError(f"{file}: {client.base_url} refuses it: {what}.")


def _is_there(client: Any, dataset: Any) -> bool:
    found = client.search_for_instances(
        dataset.StudyInstanceUID,
        dataset.SeriesInstanceUID,
        search_filters={"SOPInstanceUID": dataset.SOPInstanceUID},
    )
    return bool(found)
