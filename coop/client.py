"""The typed door to the hub over HTTP: used by the portal, the command line, the nodes, the demo.

One `Client` speaks as one principal: nobody (public), a session or API key (`token`), or the owner
of an Ed25519 key (`key`: hospitals, and patients with a key of their own).
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self
from urllib.parse import urlencode

import httpx
import orjson

from coop.errors import CoopError, InvalidInputError, Kind, UnavailableError
from coop.keys import SigningKey
from coop.signed_request import sign

if TYPE_CHECKING:
    import ssl

TIMEOUT_S: Final = 60.0  # a long poll waits at most 25 s at the server
_KIND_BY_STATUS: Final[Mapping[int, Kind]] = {
    400: Kind.INVALID,
    401: Kind.UNAUTHENTICATED,
    402: Kind.UNPAID,
    403: Kind.FORBIDDEN,
    404: Kind.ABSENT,
    409: Kind.CONFLICT,
    413: Kind.TOO_LARGE,
    422: Kind.UNPROCESSABLE,
    429: Kind.TOO_MANY,
    503: Kind.UNAVAILABLE,
}


class RemoteError(CoopError):
    """The hub refused: carries the hub's own code, kind and sentence."""

    code: ClassVar[str] = "client.refused"

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        # Instance attributes shadow the class's: the code that is shown is the one the hub gave.
        self.__dict__["code"] = str(problem.get("code", f"http.{status}"))
        self.__dict__["kind"] = _KIND_BY_STATUS.get(status, Kind.BUG)
        self.status = status
        self.problem = dict(problem)


class Client:
    """HTTP to one hub as one principal. Thread-safe; `close` when done.

    Args:
        url: `https://host:port` of the hub.
        ca_file: Certificate authority of the hub; None means the system's.
        token: Session token or API key.
        key: Signs every request (`coop.signed_request`); excludes `token`.
    """

    def __init__(
        self,
        url: str,
        ca_file: Path | None = None,
        *,
        token: str | None = None,
        key: SigningKey | None = None,
    ) -> None:
        if not url.startswith(("https://", "http://")):
            raise InvalidInputError(f"{url[:80]}: must be an address like https://host:8440")
        verify = _context(ca_file) if ca_file else True
        self.url = url.rstrip("/")
        self._key = key
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # trust_env=False: a hospital's proxy variables must not redirect loopback traffic.
        self._http = httpx.Client(
            base_url=self.url, verify=verify, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )

    def get(
        self, path: str, *, headers: Mapping[str, str] | None = None, **params: str | int | None
    ) -> Any:  # noqa: ANN401  (JSON of the route)
        """GET `path`; query parameters that are None are left out."""
        query = urlencode({name: value for name, value in params.items() if value is not None})
        return self._send("GET", f"{path}?{query}" if query else path, None, headers)

    def pages(self, path: str, member: str) -> Iterator[Any]:
        """Everything in `member` of a listing that comes in pages, page after page."""
        after: str | int | None = None
        while True:
            page = self.get(path, after=after)
            yield from page[member]
            after = page["next"]
            if after is None:
                return

    def get_text(self, path: str) -> str:
        """GET a text resource (`/checkpoint`)."""
        return self._answer("GET", path, None, {}).text

    def get_bytes(self, path: str) -> bytes:
        """GET a binary resource (a model's artefact)."""
        return self._answer("GET", path, None, {}).content

    def post(
        self, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Any:  # noqa: ANN401  (JSON of the route)
        """POST `body` as JSON."""
        return self._send("POST", path, {} if body is None else body, headers)

    def put(self, path: str, body: object) -> Any:  # noqa: ANN401  (JSON of the route)
        """PUT `body` as JSON."""
        return self._send("PUT", path, body)

    def delete(self, path: str) -> Any:  # noqa: ANN401  (JSON of the route)
        """DELETE `path`."""
        return self._send("DELETE", path, None)

    def respond(
        self, method: str, path: str, body: object, headers: Mapping[str, str]
    ) -> httpx.Response:
        """The whole response, for callers that need its headers; raises like the others."""
        return self._answer(method, path, None if body is None else orjson.dumps(body), headers)

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(
        self, method: str, path: str, body: object, headers: Mapping[str, str] | None = None
    ) -> Any:  # noqa: ANN401  (JSON of the route)
        content = None if body is None else orjson.dumps(body)
        response = self._answer(method, path, content, headers or {})
        return orjson.loads(response.content) if response.content else None

    def _answer(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]
    ) -> httpx.Response:
        sent = dict(headers)
        if content is not None:
            sent["Content-Type"] = "application/json"
        if self._key is not None:
            now = int(time.time())
            sent |= sign(self._key, method=method, path=path, body=content or b"", now=now)
        try:
            response = self._http.request(method, path, content=content, headers=sent)
        except httpx.HTTPError as error:
            raise UnavailableError(f"{self.url} {_why(error)}") from error
        if response.is_error:
            raise RemoteError(response.status_code, _problem(response))
        return response


def _context(ca_file: Path) -> "ssl.SSLContext":
    import ssl  # noqa: PLC0415  (half the start-up time of a command that needs no network)

    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:  # ssl.SSLError is one
        raise InvalidInputError(
            f"{ca_file}: holds no certificate authority; it is tls/ca.crt of the hub's folder"
        ) from error


def _why(error: httpx.HTTPError) -> str:
    """What went wrong and what to do, as the end of a sentence that begins with the address."""
    said = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            "shows a certificate that is not trusted here; name the hub's certificate authority "
            "(COOP_CA_FILE, --ca) and an address that the certificate is for"
        )
    if isinstance(error, httpx.RemoteProtocolError) or "SSL" in said:
        return "speaks another protocol; is it the hub's address, with https://?"
    return f"does not answer ({type(error).__name__}); is it running, and is this its address?"


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        return problem
    origin = f"{response.url.scheme}://{response.url.netloc.decode()}"
    return {"title": f"HTTP {response.status_code} from {origin}; is this the right address?"}
