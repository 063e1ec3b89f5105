"""Fuzzes a decoder for as long as you like, led by which lines its bytes reach: `python -m tests.fuzz http -s 300`.

The same promises as in the tests beside this file, which look at some hundreds of examples each. Needs atheris.
What breaks a promise is kept by hypothesis, so that the test by itself shows it again, as small as it gets.
"""

import argparse
import importlib
import sys

import atheris

TESTS = {
    "http": ("test_http", "test_http_is_read_as_another_parser_reads_it"),
    "request": ("test_decoders", "test_any_body_is_a_request_or_has_a_culprit"),
    "answer": ("test_decoders", "test_any_answer_is_one_or_is_refused"),
    "target": ("test_decoders", "test_any_target_has_an_answer"),
    "grpc": ("test_decoders", "test_any_protobuf_is_a_request_or_has_a_culprit"),
    "channel": ("test_decoders", "test_whatever_a_replica_sends_each_batch_is_told_of_once"),
    "tokens": ("test_decoders", "test_any_file_of_tokens_is_one_or_says_what_is_wrong"),
}
LONGEST = 8192  # bytes that hypothesis makes one example of


def main() -> None:
    """Fuzz one decoder; ends with its status 0 where no promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("decoder", choices=TESTS)
    parser.add_argument("-s", "--seconds", type=int, default=60)
    asked = parser.parse_args()
    module, name = TESTS[asked.decoder]
    with atheris.instrument_imports(include=["deployments"]):
        test = getattr(importlib.import_module(f"tests.fuzz.{module}"), name)
    limits = [f"-max_total_time={asked.seconds}", f"-max_len={LONGEST}", "-artifact_prefix=/tmp/pliant-fuzz-"]
    atheris.Setup([sys.argv[0], *limits], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
