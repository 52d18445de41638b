"""Files on hosts with manners of their own: Google Drive (gdown) and Cityscapes (cityscapesscripts).

Both libraries are imported only when such a file is fetched. A login comes from the prompt of
cityscapesscripts, from the file it may have stored, or from the environment variables CITYSCAPES_USERNAME and
CITYSCAPES_PASSWORD; it is never written anywhere here, and errors that could carry it are replaced, not
chained.
"""

from __future__ import annotations

import io
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from panoda.data.acquire import fetch_http
from panoda.data.acquire.fetch_http import FetchError
from panoda.data.formats.declaration import RemoteFile

USERNAME, PASSWORD = "CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD"
LOGIN_PAGE = "https://www.cityscapes-dataset.com/login"


def download_google_drive(file: RemoteFile, target: Path, *, progress: bool) -> Path:
    """Fetch a file or folder of Google Drive to a partial one beside ``target``; returns what is to be verified.

    Raises:
        FetchError: quota reached, no access, no network, or gdown is not installed.
    """
    try:
        import gdown
        import requests
    except ImportError as error:
        raise FetchError(_not_installed("gdown")) from error
    assert file.google_drive is not None
    fetched = target.with_name(f"{target.name}.gdrive")
    options: dict[str, Any] = {
        "id": file.google_drive,
        "output": str(fetched),
        "quiet": not progress,
        "resume": True,
        "timeout": fetch_http.TIMEOUT_S,
        "retries": fetch_http.RETRIES,
    }
    try:
        (gdown.download_folder if file.folder else gdown.download)(**options)
    except (gdown.exceptions.DownloadError, requests.exceptions.RequestException, OSError) as error:
        raise FetchError(_drive_help(file, target, error)) from error
    if not fetched.exists():
        raise FetchError(_drive_help(file, target, "nothing arrived"))
    return fetched


def _drive_help(file: RemoteFile, target: Path, why: object) -> str:
    kind = "drive/folders" if file.folder else "file/d"
    view = "" if file.folder else "/view"
    page = f"https://drive.google.com/{kind}/{file.google_drive}{view}"
    reason = " ".join(str(why).split())
    return (
        f"{file.name}: Google Drive did not hand it out ({reason}). It limits how often a public file is "
        f"fetched in 24 hours by everybody together: try again tomorrow, or open {page} in a browser where "
        "you are logged in ('Make a copy' into your own Drive helps when the limit is reached), download it "
        f"there and put it at {target}; then run the command again, which goes on from there"
    )


class Cityscapes:
    """Packages of the Cityscapes downloader; logs in once, when the first package is wanted."""

    def __init__(self) -> None:
        self._session: Any = None

    def download(self, file: RemoteFile, target: Path, *, progress: bool) -> Path:
        """Fetch one package into a folder beside ``target``; an interrupted one is resumed.

        Raises:
            FetchError: wrong login, no access to the package, no network, wrong checksum.
        """
        downloader = _cityscapes_downloader()
        if self._session is None:
            self._session = login(downloader)
        folder = target.with_name(f"{target.name}.cityscapes")
        folder.mkdir(parents=True, exist_ok=True)
        package = folder / file.name
        for attempt in range(fetch_http.RETRIES + 1):
            try:
                quiet = None if progress else io.StringIO()
                with redirect_stdout(quiet or sys.stdout), redirect_stderr(quiet or sys.stderr):
                    downloader.download_packages(
                        session=self._session,
                        package_names=[file.name],
                        destination_path=str(folder),
                        resume=True,
                    )
                return package
            # The downloader raises bare Exceptions and AssertionErrors.
            except Exception as error:
                if attempt == fetch_http.RETRIES or not _worth_another(error, package):
                    raise FetchError(_cityscapes_help(error, package)) from None
            time.sleep(fetch_http.BACKOFF_S * 2**attempt)
        raise AssertionError("unreachable")


def _worth_another(error: Exception, package: Path) -> bool:
    """Whether to try again; a damaged package, or one complete but never verified, starts over."""
    import requests

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 416 or "MD5" in str(error):
        package.unlink(missing_ok=True)
        return True
    refused = status is not None and status not in fetch_http.RETRIED
    return isinstance(error, requests.exceptions.RequestException) and not refused


def _cityscapes_help(error: Exception, package: Path) -> str:
    # An assertion on the status of the answer is how the downloader says that it was sent away.
    refused = isinstance(error, AssertionError)
    reason = "the site did not hand it to this account" if refused else _without_login(str(error))
    return (
        f"{package.name}: the Cityscapes downloader failed ({reason}); run the command again (it resumes), "
        "or download the package on https://www.cityscapes-dataset.com/downloads/ and put it at "
        f"{package.parent.with_name(package.name)}"
    )


def login(downloader: Any) -> Any:
    """A logged-in session: from the environment, else from the stored file or prompt of cityscapesscripts.

    Raises:
        FetchError: no login at hand, a wrong one, or no network.
    """
    username, password = os.environ.get(USERNAME), os.environ.get(PASSWORD)
    if bool(username) != bool(password):
        raise FetchError(f"set both {USERNAME} and {PASSWORD}, or none of them")
    try:
        if username and password:
            return _login_with(username, password)
        if not _stored_login() and not sys.stdin.isatty():
            raise FetchError(
                "Cityscapes needs a login (register at https://www.cityscapes-dataset.com/register/): run "
                f"this in a terminal, or set the environment variables {USERNAME} and {PASSWORD}"
            )
        return downloader.login()
    except FetchError:
        raise
    except (Exception, SystemExit) as error:
        wrong = "Bad credentials" in str(error)
        reason = (
            "wrong user name or password" if wrong else _without_login(str(error) or type(error).__name__)
        )
        raise FetchError(f"Cityscapes login failed: {reason}") from None


def _login_with(username: str, password: str) -> Any:
    import requests

    session = requests.Session()
    session.get(LOGIN_PAGE, allow_redirects=False, timeout=60).raise_for_status()
    form = {"username": username, "password": password, "submit": "Login"}
    answer = session.post(LOGIN_PAGE, data=form, allow_redirects=False, timeout=60)
    answer.raise_for_status()
    # The site redirects after a successful login and shows the form again after a wrong one.
    if answer.status_code != 302:
        raise FetchError(f"Cityscapes login failed: wrong user name or password in {USERNAME}, {PASSWORD}")
    return session


def _stored_login() -> bool:
    """Whether cityscapesscripts stored a login on this machine at the user's wish."""
    import appdirs

    return os.path.isfile(
        os.path.join(appdirs.user_data_dir("cityscapesscripts", "cityscapes"), "credentials.json")
    )


def _without_login(text: str) -> str:
    for name in (PASSWORD, USERNAME):
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return " ".join(text.split())


def _cityscapes_downloader() -> Any:
    try:
        from cityscapesscripts.download import downloader
    except ImportError as error:
        raise FetchError(_not_installed("cityscapesscripts")) from error
    return downloader


def _not_installed(package: str) -> str:
    return f"{package} is not installed; install the extra: pip install 'panoda[data]'"
