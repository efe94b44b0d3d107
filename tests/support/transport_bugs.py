"""The bugs that the contract of transports detects, for each check of the contract.

`TRANSPORT_BUGS` maps each test of the contract to its checks, and each check to bugs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import evolve

from flux0 import Urllib3Transport
from flux0.domain import errors
from flux0.domain.headers import Headers
from flux0.ports import Timeout
from flux0.testing.contract.base import check, check_expired, fails
from flux0.testing.contract.harness import Harness, Pending
from flux0.testing.contract.waiting import start_second_reads
from support import broken_transports as broken
from support.broken_transports import (
    OTHER_FIELDS,
    AnyBug,
    AsyncBug,
    Example,
    Over,
    nth,
    only,
    raising,
    reading,
    responding,
    sending,
    when,
)

Bugs: TypeAlias = AnyBug | tuple[AnyBug, ...]

# --- changes of examples/transport/h11_transport.py

_IDLE = {"MAX_IDLE_SECONDS = 4.0": "MAX_IDLE_SECONDS = 0.05"}
SHORT_IDLE = Example(_IDLE)
_CLOSES = "        except BaseException:\n            {}\n            raise\n        finally:"
_KEEPS_AFTER_HEADS = {
    _CLOSES.format("connection.close()"): _CLOSES.format("KEPT.append(connection)")
}
_KEEPS_AFTER_BODIES = {
    "        except TransportError:\n            self.close()\n            raise": (
        "        except TransportError:\n            KEPT.append(self)\n            raise"
    )
}
_READS_HEAD = """\
            with translated(READING):
                head = connection.read_head(request.timeout.read)
"""
_WRITES = "                connection.write(url, request)\n"
_DECOMPRESSES = "            piece = member.decompress(data, PIECE_BYTES)\n"


def _fails_at_the_end(condition: str) -> Example:
    """Return an example that accepts a body with an early end if the condition is true."""
    raises = "            if ended:\n                raise EOFError(str(error)) from error\n"
    accepts = f"            if ended and {condition}:\n                return h11.EndOfMessage()\n"
    return Example({raises: accepts + raises})


def _ignores(problem: str) -> Example:
    """Return an example that ends a gzip body if zlib finds this problem."""
    return Example(
        {
            _DECOMPRESSES: f"""\
            try:
                piece = member.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                if {problem!r} in str(error):
                    return
                raise
"""
        }
    )


def _raises_connect_error(raised: str, *, condition: str = "True") -> Example:
    """Return an example that raises a `ConnectError` although the request was sent."""
    return Example(
        {
            "        if connection is None:\n": """\
        pooled = connection is not None
        if connection is None:
""",
            _READS_HEAD: f"""\
            try:
                with translated(READING):
                    head = connection.read_head(request.timeout.read)
            except {raised} as error:
                if {condition}:
                    raise ConnectError(str(error)) from error.__cause__
                raise
""",
        }
    )


def _sends_again(condition: str = "True") -> Example:
    """Return an example that sends a request again if the connection is interrupted."""
    return Example(
        {
            "        if connection is None:\n": """\
        pooled = connection is not None
        if connection is None:
""",
            _READS_HEAD: f"""\
            try:
                with translated(READING):
                    head = connection.read_head(request.timeout.read)
            except ConnectionInterrupted:
                if {condition}:
                    connection.close()
                    self.send(request).body.close()
                raise
""",
        }
    )


_SENDS_THE_REST_AGAIN = Example(
    {
        _WRITES: """\
                try:
                    connection.write(url, request)
                except OSError:
                    connection.close()
                    connection = Connection(url, request.timeout.connect, self._context)
                    connection.write(url, request)
"""
    }
)
_RESETS_STATE = {
    "self._state.start_next_cycle()": "self._state = h11.Connection(h11.CLIENT, MAX_HEAD_BYTES)"
}
_NEVER_REUSES = Example({"        if not finished or": "        if True or not finished or"})


def _drops_surplus(field: bytes) -> Example:
    """Return an example that reuses a connection after a response with this field and surplus."""
    finished = 'self._state.trailing_data != (b"", False)'
    return Example(
        {
            "                return event\n": (
                "                self.fields = dict(event.headers)\n                return event\n"
            ),
            f"or {finished}": f"or ({finished} and {field!r} not in self.fields)",
            **_RESETS_STATE,
        }
    )


_DROPS_LATER_SURPLUS = Example(
    {
        "            self.socket.recv(1)  #": (
            "            while self.socket.recv(65536):\n                pass\n            #"
        )
    }
)
_FIRST, _SECOND, _THIRD = 1, 2, 3  # requests of a transport to one URL
_other = reading(broken.read_other_bytes)
_other_first_piece = reading(broken.read_other_first_bytes)
_other_later_piece = reading(broken.read_other_later_bytes)
_no_errors = raising(lambda _: None)
_general_errors = raising(broken.generalized)
_all_errors = (
    raising(broken.generalized),
    raising(broken.specialized),
    raising(broken.without_text),
    raising(broken.without_cause),
    raising(broken.caused_by_flux0),
)

TRANSPORT_BUGS: Mapping[str, Mapping[str, Bugs]] = {
    # --- heads
    "target_and_body_are_sent_unchanged": {
        "the method": sending(method="PUT"),
        "the received target": lambda request, send: send(evolve(request, url=f"{request.url}/x")),
        "the received body": broken.reverse_body,
        "the request's content-length headers": Example(
            {"str(len(request.body))": "str(len(request.body)).zfill(9)"}
        ),
        "the request's transfer-encoding": Example(
            {
                "for event in events))": (
                    'for event in events).replace(b"\\r\\n\\r\\n",\n'
                    '            b"\\r\\ntransfer-encoding: identity\\r\\n\\r\\n", 1))'
                )
            }
        ),
    },
    "large_body_is_sent_completely": {
        "the received body differs from the sent body": broken.reverse_body,
    },
    "empty_body_has_a_content_length": {
        "the request's content-length headers": sending(method="GET", body=None),
    },
    "default_headers_are_sent_once": {
        "a field was sent twice: *": (
            Example(
                {
                    "(request.headers).pairs": (
                        '(request.headers).pairs + (("x-a", "1"), ("x-A", "1"))'
                    )
                }
            ),
        ),
        "accept-encoding must have the request's value": sending(headers=OTHER_FIELDS),
    },
    "request_without_a_body_announces_none": {
        "the unexpected header fields": (broken.announce_a_type, sending(headers=OTHER_FIELDS)),
    },
    "request_headers_are_sent_unchanged": {
        "the received headers": (
            sending(headers=OTHER_FIELDS),
            sending(headers=Headers((("host", "x"),))),
        ),
    },
    "header_values_are_latin_1": {
        "the response header": (
            responding(headers=OTHER_FIELDS),
            Example({'value.decode("latin-1")': 'value.decode("utf-8", "replace")'}),
        ),
        "the body": _other,
        "the received header": (
            sending(headers=Headers(())),
            Example({'value.encode("latin-1")': "value.encode()"}),
        ),
    },
    "cookies_are_not_stored": {"the transport stored a cookie": broken.store_cookies()},
    "every_status_is_returned": {
        "the status": responding(status_code=299),
        "the body": _other,
        "the location header": responding(headers=OTHER_FIELDS),
        "the redirect was followed": broken.send_twice,
    },
    "interim_responses_are_skipped": {
        "the status of the final response": responding(status_code=299),
        "the link header of the final response": responding(headers=OTHER_FIELDS),
        "the body": _other,
    },
    "responses_without_a_body_end_with_their_head": {
        "the status": responding(status_code=299),
        "the body": reading(broken.read_more_bytes),
        "the connection was not reused": _NEVER_REUSES,
    },
    "response_headers_are_returned_unchanged": {
        "the header": broken.change_the_request_id,
        "the values of a repeated header": broken.join_fields,
        "raw_response must be the library's response": responding(raw_response=None),
        "the body": reading(broken.read_more_bytes),
    },
    "unusual_response_heads_are_accepted": {"the body": _other},
    "size_of_the_head_is_limited": {
        "fails errors.ProtocolError": (
            _no_errors,
            Example({"MAX_HEAD_BYTES = 65536": "MAX_HEAD_BYTES = 10**9"}),
        ),
    },
    "size_of_interim_responses_is_limited": {
        "fails errors.ProtocolError": (
            _no_errors,
            Example({"MAX_INTERIM_RESPONSES = 20": "MAX_INTERIM_RESPONSES = 10**9"}),
        ),
    },
    # --- bodies
    "body_is_returned_unchanged": {
        "Response.close_delimited": broken.negate_close_delimited,
        "the received body differs from the sent body (*)": (
            reading(broken.read_more_bytes),
            broken.for_streamed_gzip(_other),
        ),
    },
    "pieces_are_yielded_when_they_arrive": {"the body": _other_later_piece},
    "chunk_extensions_and_trailers_are_ignored": {"the body": _other},
    "content_codings_are_decoded": {"the body": _other},
    "truncated_body_is_an_interruption": {
        "fails errors.ConnectionInterrupted": (
            broken.for_streamed_gzip(reading(broken.end_early)),
            _general_errors,
            _fails_at_the_end("True"),
            only(_fails_at_the_end('self._state.trailing_data[0] == b"\\r"'), framing="chunked"),
        ),
    },
    "truncated_gzip_is_an_interruption": {
        "fails errors.ConnectionInterrupted": (
            Example({"if started and not member.eof:": "if False:"}),
        ),
    },
    "corrupt_gzip_data_is_a_protocol_error": {
        "fails errors.ProtocolError": (
            _no_errors,
            only(_ignores("incorrect header check"), damaged=0),
            only(_ignores("incorrect data check"), damaged=-6),
            only(_ignores("incorrect length check"), damaged=-2),
        ),
    },
    "unsupported_coding_is_a_protocol_error": {
        "fails errors.ProtocolError": _no_errors,
        "wait_until_closed": (reading(broken.fail_and_keep), Example(_KEEPS_AFTER_BODIES)),
    },
    "bytes_before_an_error_are_yielded": {
        "fails error": (_general_errors, raising(broken.without_cause)),
        "wait_until_closed": Example(_KEEPS_AFTER_BODIES),
    },
    "chunk_overhead_is_limited": {
        "fails errors.ProtocolError": _no_errors,
        "wait_until_closed": reading(broken.fail_and_keep),
    },
    "decompression_bomb_is_decoded_in_pieces": {
        "the body ended too early": reading(broken.read_first_piece),
        "reading 4 MB of the body needed 32 MB of memory": Example(
            {"member.decompress(data, PIECE_BYTES)": "member.decompress(data)"}
        ),
    },
    # --- connecting
    "unknown_host_is_a_connect_error": {
        "fails errors.ConnectError": (_no_errors, *_all_errors),
    },
    "refused_connection_is_a_connect_error": {"fails errors.ConnectError": _no_errors},
    "connect_timeout_expires": {
        "fails errors.ConnectTimeout": (_no_errors, broken.without_timeouts),
    },
    "each_address_of_a_host_is_tried": {
        "the body": (
            _other,
            Example(
                {
                    "create_connection(address, timeout)": """\
create_connection(
            socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][4], timeout
        )"""
                }
            ),
        ),
    },
    "ipv6_host_has_brackets": {
        "the body": _other,
        "the host header must have the URL's host": (
            sending(headers=Headers((("host", "x"),))),
            Example({'("host", url.netloc)': '("host", f"{url.hostname}:{url.port}")'}),
        ),
    },
    "trusted_server_is_used_over_tls": {
        "the body": when(broken.is_streamed, _other),
        "the body (2)": when(broken.is_whole, _other),
        "the connection was not reused": _NEVER_REUSES,
    },
    "unknown_authority_is_a_tls_error": {
        "fails errors.TLSError": broken.without_tls,
        "the request was sent over an untrusted connection": broken.send_to_any_server_first,
    },
    "certificate_for_another_host_is_a_tls_error": {
        "fails errors.TLSError": broken.without_tls,
        "the request was sent over an untrusted connection": broken.send_to_any_server_first,
    },
    "plain_http_instead_of_tls_is_a_tls_error": {"fails errors.TLSError": _no_errors},
    "connect_timeout_limits_the_tls_handshake": {
        "fails errors.ConnectTimeout": _general_errors,
        "wait_until_closed": broken.abandoning("connect", errors.ConnectTimeout),
    },
    "malformed_response_over_tls_is_a_protocol_error": {
        "fails errors.ProtocolError": _no_errors,
        "wait_until_closed": Example(_KEEPS_AFTER_HEADS),
    },
    "corrupt_tls_record_in_a_body_is_an_interruption": {
        "fails errors.ConnectionInterrupted": _no_errors,
        "wait_until_closed": reading(broken.fail_later_and_keep),
    },
    "each_read_has_its_own_timeout": {
        "the first piece": _other_first_piece,
        "the second pieces": _other_later_piece,
        "check_expired": _general_errors,
    },
    "part_of_a_tls_record_does_not_extend_the_timeout": {
        "fails errors.ReadTimeout": Example(
            {"left = None if end is None else end - monotonic()": "left = self.timeout"}
        ),
    },
    "close_ends_a_read_over_tls": {
        "wait_until_closed": broken.end_reads_without_closing,
        "raises errors.TransportError": _no_errors,
    },
    "pool_timeout_expires": {
        "fails errors.PoolTimeout": _no_errors,
        "the body": _other,
    },
    "garbage_collected_body_frees_its_place_in_the_pool": {
        "wait_until_closed": lambda request, _: broken.keep_open(request, Urllib3Transport().send),
    },
    # --- requests are sent once
    "request_is_sent_once_if_its_response_fails": {
        "the body": _other,
        "fails error": (
            _general_errors,
            _raises_connect_error("ConnectionInterrupted"),
            only(_raises_connect_error("ReadTimeout"), breaks="silent"),
            only(_raises_connect_error("TransportError", condition="pooled"), pooled=True),
        ),
        "wait_until_closed": (
            broken.abandoning("read", errors.ReadTimeout),
            Example(_KEEPS_AFTER_HEADS),
        ),
        "the request was not sent exactly once": (
            broken.send_again_and_raise,
            _sends_again(),
            _sends_again("pooled"),
        ),
    },
    "request_is_sent_once_if_writing_fails": {
        "raises errors.ConnectionInterrupted": (
            _no_errors,
            Example({"ConnectionInterrupted),\n)\nREADING": "ConnectError),\n)\nREADING"}),
        ),
        "the request was sent again": (broken.send_again_and_raise, _SENDS_THE_REST_AGAIN),
    },
    "request_that_the_server_began_to_read_is_not_resent": {
        "the body": nth(1, _other),
        "the request was sent again": (broken.send_again, _SENDS_THE_REST_AGAIN),
    },
    "request_over_a_closed_pooled_connection_is_not_sent_twice": {
        "the body": nth(_FIRST, _other),
        "the body of the response to the POST request": when(
            broken.is_post, broken.freshly(_other)
        ),
        "* must be a ConnectionInterrupted": when(
            broken.is_post, broken.freshly(broken.raising_after(errors.ReadTimeout))
        ),
        "the server must get one request, or none after a ConnectError": (
            when(broken.is_post, broken.freshly(broken.send_twice)),
            when(broken.is_post, broken.freshly(broken.raising_after(errors.ConnectError))),
        ),
        "the body (2)": nth(_THIRD, _other),
    },
    "redirects_are_not_followed": {
        "the status": responding(status_code=299),
        "the location header": responding(headers=OTHER_FIELDS),
        "read() must return the redirect's body, or b''": _other,
        "the request was not sent exactly once": broken.send_twice,
    },
    # --- connections are released
    "finished_body_releases_its_connection_for_reuse": {
        "the body": _other,
        "the connection was not reused": _NEVER_REUSES,
    },
    "connection_is_not_reused_for_another_port": {
        "a request was sent to the server of another URL": (
            Example(
                {
                    "self.origin = (url.scheme, url.netloc)": (
                        "self.origin = (url.scheme, url.hostname)"
                    ),
                    "self._idle.get((url.scheme, url.netloc))": (
                        "self._idle.get((url.scheme, url.hostname))"
                    ),
                }
            ),
        ),
    },
    "connection_is_not_reused_for_another_scheme": {
        "the body": _other,
        "raises errors.ConnectError": _general_errors,
        "an https request was sent without TLS": broken.send_without_tls_and_raise,
    },
    "connection_is_not_reused_after_connection_close": {
        "the body": _other,
        "the number of connections after `connection: close`": Example(
            {
                "finished = set(self._state.states.values()) == {h11.DONE}": "finished = True",
                **_RESETS_STATE,
            }
        ),
    },
    "body_closed_early_closes_its_connection": {
        "the body": _other,
        "wait_until_closed": broken.close_without_the_connection,
        "raises errors.TransportError": _no_errors,
    },
    "garbage_collected_body_closes_its_connection": {
        "the body": _other,
        "wait_until_closed": (
            broken.keep_open,
            Example({"WeakSet[Body] = WeakSet()": "set[Body] = set()"}),
        ),
    },
    "close_ends_a_read_in_another_thread_or_task": {
        "raises errors.TransportError": _no_errors,
        "wait_until_closed": broken.end_reads_without_closing,
    },
    "connection_with_surplus_bytes_is_not_reused": {
        "the body": nth(_FIRST, _other),
        "the server did not send the surplus bytes in time": _NEVER_REUSES,
        "the body (2)": nth(_SECOND, _other),
        "the number of connections after surplus bytes": (
            only(_drops_surplus(b"content-length"), surplus="with-it"),
            only(_drops_surplus(b"transfer-encoding"), surplus="with-last-chunk"),
            only(_DROPS_LATER_SURPLUS, surplus="after-it"),
        ),
    },
    "concurrent_requests_do_not_block_each_other": {
        "wait_for_requests": broken.one_at_a_time(),
        "the bodies": _other,
        "the received targets": lambda request, send: send(evolve(request, url=f"{request.url}/x")),
    },
    "waiting_reads_do_not_block_other_calls": {
        "the bodies": when(broken.is_streamed, _other_first_piece),
        "the body": (broken.one_read_at_a_time(), when(broken.is_whole, _other)),
        "the bodies (2)": _other_later_piece,
    },
    "closing_the_transport_closes_idle_connections": {
        "the bodies": nth(_FIRST, _other),
        "wait_until_closed": (
            broken.forget_to_close,
            Example(
                {
                    "            for connection in connections:": (
                        "            for connection in connections[1:]:"
                    )
                }
            ),
        ),
        "the body": nth(_THIRD, _other),
    },
    "closing_the_transport_closes_connections_of_bodies": {
        "the body": _other,
        "wait_until_closed": Example(
            {"            body.close()\n": "            body._closed = True\n"}
        ),
        "raises errors.TransportError": _no_errors,
    },
    "closing_the_transport_during_a_send_returns": {
        "the request ended without a response": sending(timeout=Timeout(0.01, 0.01, 0.01, 0.01)),
    },
    "garbage_collection_at_any_moment_does_not_deadlock": {
        "the body": when(broken.is_whole, nth(_FIRST, _other)),
        "the body (2)": when(broken.is_whole, nth(100, _other)),
        "the transport * in a child process: see the captured standard error": when(
            broken.is_streamed, nth(_SECOND, broken.raising_after(errors.ReadTimeout))
        ),
    },
    # --- waiting
    "read_timeout_limits_the_wait_for_headers": {
        "fails ReadTimeout": _general_errors,
        "wait_until_closed": broken.abandoning("read", errors.ReadTimeout),
    },
    "timeout_of_a_read_limits_the_wait_for_a_piece": {
        "check_expired": (_general_errors, raising(broken.without_cause)),
        "wait_until_closed": reading(broken.abandon_read),
    },
    "write_timeout_expires": {
        "fails WriteTimeout": (
            broken.without_timeouts,
            Example({"settimeout(request.timeout.write)": "settimeout(request.timeout.read)"}),
        ),
    },
    "bytes_without_content_do_not_extend_the_timeout": {
        "check_expired": (
            broken.without_timeouts,
            Example({"left = None if end is None else end - monotonic()": "left = self.timeout"}),
            Example({"            yield piece  #": "            if piece: yield piece  #"}),
        ),
    },
    "interrupt_ends_the_wait_for_headers": {
        "the body": _other,
        "wait_for_requests": nth(_SECOND, broken.wait_for_fire),
        "raises TransportError": _no_errors,
        "wait_until_closed": broken.abandon_when_fired,
    },
    "interrupt_after_the_headers_has_no_effect": {
        "the first piece of the body": nth(_FIRST, _other_first_piece),
        "the second piece of the body": nth(_FIRST, _other_later_piece),
        "the body": broken.fail_after_fire(),
    },
    "timeout_none_waits_without_limit": {
        "* ended early: *": (
            sending(timeout=Timeout(0.01, 0.01, 0.01, 0.01)),
            Example(
                {
                    "create_connection(address, timeout)": (
                        "create_connection(address, timeout or 0.05)"
                    ),
                    "(request.timeout.write)": "(request.timeout.write or 0.05)",
                    "settimeout(left)": "settimeout(left or 0.05)",
                }
            ),
        ),
    },
    "whole_body_may_take_longer_than_the_timeout_of_each_read": {
        "the body": reading(lambda body, _: body.read(0.01)),
    },
    "read_timeout_of_the_request_does_not_apply_to_a_body": {
        "the body": reading(lambda body, _: body.read(0.01)),
    },
    "connection_idle_for_long_is_not_reused": {
        "the body": Over(nth(_FIRST, _other), SHORT_IDLE),
        "the body (2)": Over(nth(_SECOND, _other), SHORT_IDLE),
        "an idle connection was reused": Example(
            {"MAX_IDLE_SECONDS = 4.0": "MAX_IDLE_SECONDS = 4e9"}
        ),
    },
}

# The bugs that checks in helper functions detect, each with a test that calls the function.
HELPER_BUGS: Mapping[Callable[..., Any], Mapping[str, tuple[str, AnyBug]]] = {
    check: {"* must be *, not *": ("chunk_extensions_and_trailers_are_ignored", _other)},
    fails: {
        "* must raise *, not *": ("unknown_host_is_a_connect_error", _general_errors),
        "* has no message": ("unknown_host_is_a_connect_error", raising(broken.without_text)),
        "the error's `__cause__` must be the HTTP library's exception": (
            "unknown_host_is_a_connect_error",
            raising(broken.caused_by_flux0),
        ),
    },
    check_expired: {
        "fails ReadTimeout": ("timeout_of_a_read_limits_the_wait_for_a_piece", _general_errors),
    },
    Pending[Any].error: {"problem": ("cookies_are_not_stored", broken.respond_late)},
    Harness.read_first: {
        "the body must begin with b'first', not *": (
            "pieces_are_yielded_when_they_arrive",
            _other_first_piece,
        ),
    },
    start_second_reads: {
        "the beginning of the body": (
            "timeout_of_a_read_limits_the_wait_for_a_piece",
            _other_first_piece,
        ),
    },
}

ASYNC_BUGS: Mapping[str, Mapping[str, AsyncBug]] = {
    "cancelled_send_closes_its_connection": {
        "wait_for_requests": broken.wait_forever,
        "wait_until_closed": broken.keep_connections_open,
    },
    "body_closed_on_cancellation_closes_its_connection": {
        "wait_until_closed": broken.keep_connections_open,
    },
    "cancelled_read_does_not_end_the_body": {"the body": broken.end_after_a_cancelled_read},
}

# Checks without bugs, each with a reason.
HARNESS: Mapping[str, str] = {
    "check_body: problem": "without the check, the missing method raises an AttributeError",
    "request_is_sent_once_if_its_response_fails: wait_for_requests": (
        "the server may receive the request after the timeout, and then count it"
    ),
}


def covered() -> set[str]:
    """Return the names of all checks in these tables, such as "TEST: LABEL"."""
    helpers = {each.__qualname__: labels for each, labels in HELPER_BUGS.items()}
    tables: Mapping[str, Mapping[str, Any]] = {**TRANSPORT_BUGS, **ASYNC_BUGS, **helpers}
    rows = {f"{name}: {label}" for name, labels in tables.items() for label in labels}
    return rows | HARNESS.keys()
