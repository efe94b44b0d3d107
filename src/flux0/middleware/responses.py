"""Reads the bodies of responses, and raises an `APIError` for each status other than 2xx."""

from __future__ import annotations

from typing import Any, cast

from flux0.domain.api_errors import (
    APIError,
    HTTPValidationError,
    HTTPValidationErrorData,
    api_error_class,
)
from flux0.domain.errors import DecodeError, Flux0Error
from flux0.domain.http import is_event_stream, is_success
from flux0.flows import CallRequest, Flow, ReadBody, SendFlow
from flux0.ports import Codec, Response

_LONGEST_MESSAGE = 500
# If no route has the request's path, the server sends a 404 response with the `detail` "Not Found".
# For an unknown agent or session, `detail` has another value.
_NOT_FOUND = "Not Found"
_NO_ROUTE = (
    "Not Found: the route does not exist; server_url must be the URL before /api, such as "
    "http://host:8080"
)


class ResponsePolicy:
    """Reads the body of a response, up to a size limit, and raises `APIError` for error statuses.

    The event stream of a streaming request is not read.
    """

    def __init__(self, codec: Codec, max_body_bytes: int) -> None:
        self._codec = codec
        self._max_body_bytes = max_body_bytes

    def __call__(self, request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        response = yield from send(request)
        status = response.status_code
        if request.is_streaming(status) and is_event_stream(response.headers):
            return response
        body = response.body
        if not isinstance(body, bytes):  # Another middleware may have read the body already.
            try:
                body = yield ReadBody(request, response, self._max_body_bytes)
            except Flux0Error:
                if is_success(status):
                    raise
                # Ignore the error of reading the body: the APIError for the response has the
                # response's status, which is more useful.
                body = b""
            response = Response(status, response.headers, body, response.raw_response)
        if is_success(status):
            return response
        raise self._error(response, body)

    def _error(self, response: Response[Any], body: bytes) -> APIError:
        detail = self._detail(body)
        data = self._validation(detail)
        text = body.decode("utf-8", "replace")
        if isinstance(detail, str) and detail:
            message = _NO_ROUTE if detail == _NOT_FOUND else detail
        else:
            message = _summary(data) or _plain(response, text) or _phrase(response.status_code)
        error = api_error_class(response.status_code)(
            message,
            status_code=response.status_code,
            body=text,
            headers=response.headers,
            raw_response=response.raw_response,
        )
        if isinstance(error, HTTPValidationError):
            error.data = data
        return error

    def _detail(self, body: bytes) -> object:
        try:
            data = self._codec.decode(object, body)
        except DecodeError:
            return None
        return cast("dict[str, object]", data).get("detail") if isinstance(data, dict) else None

    def _validation(self, detail: object) -> HTTPValidationErrorData:
        try:
            return self._codec.from_dict(HTTPValidationErrorData, {"detail": detail})
        except DecodeError:
            return HTTPValidationErrorData()


def _summary(data: HTTPValidationErrorData) -> str:
    problems = data.detail
    return "; ".join(f"{'.'.join(map(str, each.loc))}: {each.msg}" for each in problems)


def _plain(response: Response[Any], text: str) -> str:
    content_type = response.headers.get("content-type", "").lower()
    return text.strip()[:_LONGEST_MESSAGE] if content_type.startswith("text/plain") else ""


def _phrase(status: int) -> str:
    from http import HTTPStatus  # noqa: PLC0415 - slow to import, rarely needed

    return next((each.phrase for each in HTTPStatus if each == status), "unknown status")
