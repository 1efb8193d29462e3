"""Cases that live better in tests of their own: processes, signals, real engines, power cuts. With their node ids."""

from __future__ import annotations

from tests.faults.case import Elsewhere

SERVING, LOG, POLICY, REWARD = "tests/serving/", "tests/log/", "tests/policy/", "tests/reward/"
PROCESS, SCAN = f"{SERVING}test_process.py::", f"{SERVING}test_scan.py::"
PORTS = f"{SERVING}test_scan_ports.py::"

BAD_INPUT = (
    Elsewhere(
        "random bytes, damaged messages, odd values in any field",
        "OK or INVALID_ARGUMENT or FAILED_PRECONDITION, with a field that there is",
        ("tests/faults/test_fuzz.py::test_parser_and_validator", "tests/faults/test_fuzz.py::test_through_grpc"),
    ),
    Elsewhere(
        "bad, cyclic, hostile JSON schema or regex, where the backend has them",
        "INVALID_ARGUMENT, in a bounded time, and the engine lives",
        (
            f"{SERVING}test_constraints.py::test_bad_ones_are_the_caller_s_fault",
            f"{POLICY}test_grammar_gate.py::test_what_is_wrong_is_named",
            f"{POLICY}test_grammar_gate.py::test_processor_time_is_what_is_limited",
            f"{POLICY}test_vllm_constraints.py::test_bad_ones_are_refused_and_would_not_kill_the_engine",
        ),
    ),
    Elsewhere(
        "what a real engine must not get",
        "INVALID_ARGUMENT; of a seed that it could not take, FAILED_PRECONDITION",
        (
            f"{POLICY}test_vllm.py::test_what_the_engine_must_not_get_is_refused",
            f"{POLICY}test_vllm.py::test_a_seed_where_prefills_come_in_chunks",
        ),
    ),
    Elsewhere(
        "seed under load or with long prompts, where it can",
        "OK, and the engine lives",
        (f"{POLICY}test_vllm.py::test_seeds_under_load_with_long_prompts",),
    ),
    Elsewhere(
        "extreme sampling parameters on the real engine",
        "OK, and the engine lives",
        (f"{POLICY}test_vllm.py::test_extreme_parameters_do_not_kill_the_engine",),
    ),
    Elsewhere(
        "bad feedback, feedback on nothing, feedback twice",
        "INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS",
        (
            f"{SERVING}test_feedback.py::test_bad_fields",
            f"{SERVING}test_feedback.py::test_an_unknown_request",
            f"{SERVING}test_feedback.py::test_another_observation_of_that_id_is_refused",
        ),
    ),
    Elsewhere(
        "request_id of another request, or of one that is running",
        "ALREADY_EXISTS, ABORTED",
        (
            f"{SERVING}test_request_ids.py::test_another_request_is_refused",
            f"{SERVING}test_request_ids.py::test_still_running",
        ),
    ),
    Elsewhere(
        "malformed bytes to health and reflection",
        "INVALID_ARGUMENT",
        (
            f"{SERVING}test_operating.py::test_malformed_health_checks_are_never_unknown",
            f"{SERVING}test_operating.py::test_malformed_reflection_is_never_unknown",
        ),
    ),
)

TRANSPORT = (
    Elsewhere(
        "bad key file, port in use, wrong setting: `bon serve` as a process",
        "one sentence, exit code 1 or 2",
        (
            f"{PROCESS}test_wrong_starts_are_told_in_one_sentence",
            f"{PROCESS}test_a_taken_port_is_told_in_one_sentence",
            f"{SERVING}test_open_starts.py::test_files_that_cannot_be_used_are_no_start",
        ),
    ),
    Elsewhere(
        "plain bytes to the TLS port, TLS 1.0 and 1.1",
        "the connection is cut",
        (
            f"{PORTS}test_plain_text_is_not_answered_on_the_tls_port",
            f"{PORTS}test_old_versions_of_tls_are_refused",
        ),
    ),
    Elsewhere(
        "no key, a wrong key, a key without the right",
        "UNAUTHENTICATED, PERMISSION_DENIED",
        (
            f"{SCAN}test_no_method_but_health_is_open_without_a_key",
            f"{SCAN}test_a_key_opens_what_its_right_is_for_and_nothing_else",
        ),
    ),
)

CANCELLATION = (
    Elsewhere(
        "cancel at each stage on the real engine",
        "CANCELLED, and the engine is at rest",
        (
            f"{POLICY}test_engine_at_rest.py::test_the_engine_is_at_rest_after_each_end",
            f"{POLICY}test_vllm.py::test_cancelling_frees_the_engine",
        ),
    ),
    Elsewhere(
        "failure in the moment in which the caller leaves",
        "CANCELLED, and nothing ends up with the event loop",
        (f"{SERVING}test_failing_models.py::test_a_failure_while_the_caller_leaves_is_nobodys_error",),
    ),
    Elsewhere(
        "deadline shorter than answers take, as learned from earlier ones",
        "DEADLINE_EXCEEDED, nothing is sampled",
        (f"{SERVING}test_deadlines_learned.py::test_what_cannot_be_met_is_refused_before_anything_is_sampled",),
    ),
)

LIFECYCLE = (
    Elsewhere(
        "SIGTERM while idle", "exit code 0 in 2 s", (f"{PROCESS}test_a_signal_while_idle_ends_it_within_two_seconds",)
    ),
    Elsewhere(
        "SIGTERM with work", "running calls finish, exit code 0", (f"{PROCESS}test_a_signal_with_work_waits_for_it",)
    ),
    Elsewhere(
        "order of going down",
        "NOT_SERVING first, then UNAVAILABLE",
        (f"{SERVING}test_draining.py::test_health_changes_before_calls_are_refused",),
    ),
    Elsewhere(
        "grace over, second signal",
        "UNAVAILABLE, still logged, exit code 0 at once",
        (
            f"{PROCESS}test_when_the_grace_is_over_the_rest_is_told_and_logged",
            f"{PROCESS}test_a_second_signal_stops_at_once",
        ),
    ),
    Elsewhere(
        "SIGTERM with a stream that is not read, or read slowly",
        "in time all the same; the reader gets it all",
        (
            f"{PROCESS}test_an_unread_stream_does_not_hold_up_the_end",
            f"{SERVING}test_draining.py::test_also_those_that_are_read_slowly",
        ),
    ),
    Elsewhere(
        "second server on the same log folder, as a process",
        "one sentence naming the holder, exit code 1",
        (f"{PROCESS}test_a_log_in_use_names_who_uses_it",),
    ),
    Elsewhere(
        "the server itself is stuck",
        "it prints its stacks and ends, exit code 1",
        (f"{PROCESS}test_a_server_that_is_stuck_ends_itself",),
    ),
)

MODELS = (
    Elsewhere(
        "real engine killed (−9) or stopped (SIGSTOP)",
        "UNAVAILABLE for all in flight, NOT_SERVING, exit code 1 within the limit",
        (f"{SERVING}test_hung_engine.py::test_callers_are_told_and_the_server_ends",),
    ),
    Elsewhere(
        "engine that hangs, as a process",
        "UNAVAILABLE, stacks of the threads, exit code 1",
        (f"{PROCESS}test_an_engine_that_hangs_ends_the_server",),
    ),
    Elsewhere(
        "real reward model out of memory",
        "smaller batches; only what does not fit alone fails",
        (
            f"{REWARD}test_transformers.py::test_lack_of_memory_halves_the_batch",
            f"{REWARD}test_transformers.py::test_a_failing_forward_pass_fails_its_requests_and_no_others",
        ),
    ),
    Elsewhere(
        "NaN, or too long, in a real reward model",
        "left out and marked",
        (
            f"{REWARD}test_transformers.py::test_a_reward_that_is_not_finite_is_marked",
            f"{REWARD}test_transformers.py::test_what_does_not_fit_is_marked_and_not_cut",
            f"{REWARD}test_vllm_reward.py::test_what_fills_the_context_is_scored_and_what_does_not_fit_is_marked",
        ),
    ),
    Elsewhere(
        "weights that are cut, of another shape, incomplete",
        "the start fails in one sentence",
        (
            "tests/test_weights.py::test_weights_cut_or_grown",
            "tests/test_weights.py::test_pickled_weights",
            "tests/test_weights.py::test_code_in_the_model",
            f"{POLICY}test_vllm_lifecycle.py::test_files_that_cannot_be_used",
            f"{POLICY}test_vllm_lifecycle.py::test_weights_that_are_not_all_there",
        ),
    ),
    Elsewhere(
        "synthetic models that fail at a rate",
        "OK with `partial`; INTERNAL where all fail",
        (
            f"{SERVING}test_failing_models.py::test_some_samples_fail",
            f"{SERVING}test_failing_models.py::test_some_scores_fail",
            f"{SERVING}test_failing_models.py::test_everything_fails",
        ),
    ),
)

LOG_FAULTS = (
    Elsewhere(
        "kill −9 at a random moment, 1,000 times",
        "every acknowledged record is there once",
        (
            f"{LOG}test_spool_faults.py::test_kill_minus_nine_loses_nothing_that_was_acknowledged",
            f"{SERVING}test_kill_server.py::test_killed_servers_lose_nothing_and_double_nothing",
            f"{SERVING}test_kill_harvest.py::test_what_was_acknowledged_is_logged_once_after_each_kill",
        ),
    ),
    Elsewhere(
        "power cut at any moment: all states that a disk may be left in",
        "what was acknowledged is there",
        (
            f"{LOG}test_crash_states.py::test_what_was_acknowledged_survives_every_power_cut",
            f"{LOG}test_crash_states_of_removal.py::test_it_is_finished_after_every_power_cut",
        ),
    ),
    Elsewhere(
        "crash between rename and dropping from the spool",
        "no duplicate, nothing lost",
        (
            f"{LOG}test_sealing.py::test_a_crash_at_any_step_is_harmless",
            f"{LOG}test_crash_states_of_sealing.py::test_nothing_is_lost_or_doubled_by_a_power_cut",
        ),
    ),
    Elsewhere(
        "bit flip, truncated or missing segment, foreign file",
        "`bon log verify` names it; readers stop, or leave it out when asked to",
        (
            f"{LOG}test_verify.py::test_any_changed_byte_of_a_segment_is_found",
            f"{LOG}test_verify.py::test_a_truncated_segment",
            f"{LOG}test_verify.py::test_a_missing_segment",
            f"{LOG}test_verify.py::test_a_foreign_file",
            f"{LOG}test_verify.py::test_damaged_pages_of_the_spool",
            f"{LOG}test_log_commands.py::test_damage_is_reported_and_left_out_only_when_asked",
        ),
    ),
    Elsewhere(
        "disk full while sealing and renaming; a real file system that is full",
        "RESOURCE_EXHAUSTED where work is refused, nothing lost, recovers",
        (
            f"{LOG}test_sealing.py::test_a_full_disk_leaves_everything_as_it_was",
            f"{SERVING}test_sealing_server.py::test_a_sealing_that_fails_is_tried_again_and_told_without_content",
            f"{SERVING}test_full_log.py::test_a_file_system_that_is_really_full",
            f"{SERVING}test_full_log.py::test_a_server_may_start_on_a_full_disk",
        ),
    ),
    Elsewhere(
        "fsync error below SQLite",
        "nothing is acknowledged any more; exit code 1",
        (
            f"{LOG}test_spool_faults.py::test_a_failed_sync_is_final",
            f"{SERVING}test_failing_log.py::test_a_failed_disk_stops_the_server",
        ),
    ),
    Elsewhere(
        "reader during write, seal, erase",
        "a consistent prefix",
        (
            f"{LOG}test_spool_faults.py::test_a_reader_in_another_process_always_sees_a_prefix",
            f"{LOG}test_reading_segments.py::test_sealing_while_reading_loses_and_doubles_nothing",
            f"{LOG}test_erase.py::test_a_reader_goes_on",
        ),
    ),
    Elsewhere(
        "old schema read by new code",
        "every field as it was",
        (
            f"{LOG}test_golden.py::test_golden_files_are_read",
            f"{LOG}test_columns.py::test_an_older_file_lacks_columns_and_a_newer_one_has_more",
        ),
    ),
)

BOUNDS = f"{SERVING}test_bounds.py::"

LOAD = (
    Elsewhere(
        "a flood of feedback, many times on one sealed request",
        "UNAVAILABLE at once with `grpc-retry-pushback-ms`; what is taken is committed, and counts in the quota",
        (
            f"{BOUNDS}test_a_flood_of_feedback_is_refused_at_once",
            f"{BOUNDS}test_feedback_on_one_sealed_request_reads_it_once",
            f"{BOUNDS}test_feedback_counts_in_the_quota",
        ),
    ),
    Elsewhere(
        "all threads of asyncio's executor blocked",
        "keys are checked all the same",
        (f"{BOUNDS}test_keys_are_checked_while_asyncio_s_threads_are_taken",),
    ),
    Elsewhere(
        "more bytes of messages at once than there is room for",
        "UNAVAILABLE with `grpc-retry-pushback-ms`; memory is bounded, small messages wait their turn",
        (
            f"{BOUNDS}test_many_large_bodies_take_bounded_memory",
            f"{BOUNDS}test_messages_wait_for_room_and_are_refused_without_it",
            f"{BOUNDS}test_small_messages_do_not_starve",
            f"{BOUNDS}test_a_call_that_leaves_gives_back_its_room",
        ),
    ),
    Elsewhere(
        "a call whose message never comes, or that has none",
        "RESOURCE_EXHAUSTED after `limits.slow_sender_s`; INVALID_ARGUMENT",
        (
            f"{BOUNDS}test_messages_wait_for_room_and_are_refused_without_it",
            f"{BOUNDS}test_a_call_without_a_message_is_told",
        ),
    ),
    Elsewhere(
        "too many connections, silent ones, few descriptors",
        "connections end; the log keeps its descriptors; no start where hardly any fit",
        (
            f"{BOUNDS}test_connections_are_bounded_and_silent_ones_end",
            f"{BOUNDS}test_strangers_leave_descriptors_for_the_log",
            f"{BOUNDS}test_too_few_descriptors_are_no_start",
        ),
    ),
    Elsewhere(
        "quota used up",
        "RESOURCE_EXHAUSTED, with `grpc-retry-pushback-ms`",
        (
            f"{SERVING}test_quotas.py::test_a_used_up_quota_is_resource_exhausted_and_says_when",
            f"{SERVING}test_quotas.py::test_many_at_once_cannot_pass_it",
        ),
    ),
    Elsewhere(
        "one of two servers killed under load",
        "every request is answered and counted once",
        (f"{SERVING}test_replicas.py::test_one_of_two_is_killed_and_every_request_is_answered_and_counted_once",),
    ),
)
