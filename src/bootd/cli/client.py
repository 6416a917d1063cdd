"""The command line's side of the control socket: HTTP over a UNIX socket, by the standard library.

Errors are sentences that say which socket, why, and what to do next.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import quote

from bootd.cli.common import Failure, WrongInput


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("bootd", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Asks the running daemon behind the socket at `path`. `timeout` in seconds per answer."""

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        self.path = path
        self.timeout = timeout

    def get(self, *parts: str) -> Any:
        """GET ``/part/part``; parts are quoted. Returns what the JSON says."""
        return self._ask("GET", parts, None)[1]

    def post(self, *parts: str, body: object = None) -> tuple[int, Any]:
        """POST `body` as JSON. Returns status and JSON; 4xx are for the caller to tell."""
        return self._ask("POST", parts, body)

    def _ask(self, method: str, parts: tuple[str, ...], body: object) -> tuple[int, Any]:
        target = "/" + "/".join(quote(part, safe="") for part in parts)
        connection = _Connection(self.path, self.timeout)
        try:
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, target, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except OSError as error:
            raise Failure(self._sentence(error)) from error
        except (http.client.HTTPException, ValueError) as error:
            raise Failure(
                f"{self.path} answers, but not as bootd does ({error}). "
                f"Is another program using this socket, or is a daemon of another version running?"
            ) from error
        finally:
            connection.close()
        if method == "GET" and response.status != 200:
            reason = answer.get("error", response.reason) if isinstance(answer, dict) else ""
            raise (WrongInput if response.status < 500 else Failure)(str(reason))
        return response.status, answer

    def _sentence(self, error: OSError) -> str:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return (
                f"bootd is not running: nothing listens on {self.path}. "
                f"See `systemctl status bootd`, or name its settings with --config."
            )
        if isinstance(error, PermissionError):
            return (
                f"{self.path}: permission denied. "
                f"Only root and members of group bootd may ask the daemon."
            )
        if isinstance(error, TimeoutError):
            return (
                f"{self.path}: no answer within {self.timeout:.0f} s. "
                f"See `systemctl status bootd` and `journalctl -u bootd`."
            )
        return f"{self.path}: {error.strerror or error}. See `systemctl status bootd`."


def client_for(config: str, timeout: float = 30.0) -> Client:
    """The client for the daemon whose settings are in file `config`."""
    from bootd.config.load import load_settings
    from bootd.model import ConfigError

    try:
        settings = load_settings(config)
    except ConfigError as error:
        raise WrongInput("\n".join(error.faults)) from error
    return Client(settings.control_socket, timeout)
