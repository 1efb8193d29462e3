"""Cases that live better in tests of their own: processes, signals, real engines, power cuts. With their node ids."""

from __future__ import annotations

from tests.faults.case import Elsewhere

SERVING, LOG = "tests/serving/", "tests/log/"
VLLM, REWARD = "tests/models/vllm/", "tests/models/reward/"
PROCESS, SCAN = f"{SERVING}lifecycle/test_process.py::", f"{SERVING}auth/test_scan.py::"
PORTS = f"{SERVING}auth/test_scan_ports.py::"
ODD, LISTENER = f"{SERVING}lifecycle/test_odd_calls.py::", f"{SERVING}lifecycle/test_listener.py::"

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
            f"{SERVING}rpc/test_constraints.py::test_bad_ones_are_the_caller_s_fault",
            f"{VLLM}test_grammar_gate.py::test_what_is_wrong_is_named",
            f"{VLLM}test_grammar_gate.py::test_processor_time_is_what_is_limited",
            f"{VLLM}test_vllm_constraints.py::test_bad_ones_are_refused_and_would_not_kill_the_engine",
        ),
    ),
    Elsewhere(
        "numbers out of range, fractions for whole numbers, NaN, unknown choices and flags on the command line",
        "exit code 2, with the flag, the value and what is allowed, before anything is done",
        ("tests/cli/test_words.py::test_a_usage_error_names_the_flag_and_what_is_allowed",),
    ),
    Elsewhere(
        "a training run that an earlier version began, whose options had other names",
        "the same command goes on with it",
        ("tests/offline/train/test_resume.py::test_a_run_of_before_whose_options_had_other_names_is_gone_on_with",),
    ),
    Elsewhere(
        "what a real engine must not get",
        "INVALID_ARGUMENT; of a seed that it could not take, FAILED_PRECONDITION",
        (
            f"{VLLM}test_vllm.py::test_what_the_engine_must_not_get_is_refused",
            f"{VLLM}test_vllm.py::test_a_seed_where_prefills_come_in_chunks",
        ),
    ),
    Elsewhere(
        "seed under load or with long prompts, where it can",
        "OK, and the engine lives",
        (f"{VLLM}test_vllm.py::test_seeds_under_load_with_long_prompts",),
    ),
    Elsewhere(
        "extreme sampling parameters on the real engine",
        "OK, and the engine lives",
        (f"{VLLM}test_vllm.py::test_extreme_parameters_do_not_kill_the_engine",),
    ),
    Elsewhere(
        "bad feedback, feedback on nothing, feedback twice",
        "INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS",
        (
            f"{SERVING}rpc/test_feedback.py::test_bad_fields",
            f"{SERVING}rpc/test_feedback.py::test_an_unknown_request",
            f"{SERVING}rpc/test_feedback.py::test_another_observation_of_that_id_is_refused",
        ),
    ),
    Elsewhere(
        "request_id of another request, or of one that is running",
        "ALREADY_EXISTS, ABORTED",
        (
            f"{SERVING}rpc/test_request_ids.py::test_another_request_is_refused",
            f"{SERVING}rpc/test_request_ids.py::test_still_running",
        ),
    ),
    Elsewhere(
        "terminal escapes, bidirectional controls, rich's markup: in completions, tags, names, words of a server",
        "shown as text by every command and in the report; JSON means the same",
        (
            "tests/client/test_visible.py::test_completions",
            "tests/client/test_visible.py::test_words_of_a_server",
            "tests/client/test_visible.py::test_lines_of_a_harvest_that_are_wrong",
            "tests/client/test_visible.py::test_what_commands_read_and_quote",
            "tests/client/test_visible.py::test_a_report",
            "tests/client/test_visible.py::test_only_one_module_prints",
            "tests/client/test_visible.py::test_the_example_in_node_escapes_the_same_characters",
        ),
    ),
    Elsewhere(
        "a value that the server's own lines quote: newlines, a forged line, terminal escapes",
        "one line, the value escaped; tracebacks indented",
        (
            f"{SERVING}telemetry/test_log_lines.py::test_a_value_that_is_quoted_can_neither_forge_a_line_nor_reach_the_terminal",
        ),
    ),
    Elsewhere(
        "a terminal whose encoding lacks characters; arguments that are not UTF-8",
        "the characters escaped; one sentence, exit code 2",
        (
            "tests/client/test_visible.py::test_an_encoding_that_lacks_characters",
            "tests/client/test_visible.py::test_arguments_that_are_not_utf_8",
        ),
    ),
    Elsewhere(
        "malformed bytes to health and reflection",
        "INVALID_ARGUMENT",
        (
            f"{SERVING}lifecycle/test_operating.py::test_malformed_health_checks_are_never_unknown",
            f"{SERVING}lifecycle/test_operating.py::test_malformed_reflection_is_never_unknown",
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
            f"{SERVING}lifecycle/test_open_starts.py::test_files_that_cannot_be_used_are_no_start",
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

ODD_CONNECTIONS = (
    Elsewhere(
        "a `:path` that is not UTF-8, in plain text and over TLS",
        "UNIMPLEMENTED, without a key UNAUTHENTICATED; the port goes on",
        (
            f"{ODD}test_a_path_that_is_not_utf_8_is_refused_and_the_port_goes_on",
            f"{ODD}test_also_over_tls_with_keys",
            f"{ODD}test_a_thousand_of_them_leave_nothing",
        ),
    ),
    Elsewhere(
        "odd headers, frames and orders, 20,000 connections, plain and TLS, with and without keys",
        "an ordinary call is answered within a second, memory and descriptors are flat, no line holds what was sent",
        ("tests/faults/test_odd_http2.py::test_the_port_goes_on_and_nothing_piles_up",),
    ),
    Elsewhere(
        "the server behind the port ends, or is silent",
        "another one takes the port, calls in flight go on; where that fails, NOT_SERVING and exit code 1",
        (
            f"{LISTENER}test_the_next_call_is_answered_and_the_restart_counted",
            f"{LISTENER}test_a_call_in_flight_goes_on",
            f"{LISTENER}test_drain_and_stop_cover_both",
            f"{LISTENER}test_a_server_that_stops_silently_is_noticed_by_the_probe",
            f"{LISTENER}test_a_port_that_somebody_else_took_ends_the_server",
        ),
    ),
    Elsewhere(
        "a call without a message, to any method",
        "INVALID_ARGUMENT; reflection, a stream, ends with OK",
        (f"{ODD}test_a_call_without_a_message_gets_a_status",),
    ),
    Elsewhere(
        "a watcher of the health who reads nothing",
        "the health changes for all others, and the server ends when it is told to",
        (f"{ODD}test_a_watcher_who_takes_nothing_holds_up_nobody",),
    ),
)

CANCELLATION = (
    Elsewhere(
        "cancel at each stage on the real engine",
        "CANCELLED, and the engine is at rest",
        (
            f"{VLLM}test_engine_at_rest.py::test_the_engine_is_at_rest_after_each_end",
            f"{VLLM}test_vllm.py::test_cancelling_frees_the_engine",
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
        (
            f"{SERVING}admission/test_deadlines_learned.py::test_what_cannot_be_met_is_refused_before_anything_is_sampled",
        ),
    ),
)

LIFECYCLE = (
    Elsewhere(
        "SIGHUP, idle or with work; a terminal that is closed",
        "as SIGTERM: running calls finish, exit code 0",
        (
            f"{PROCESS}test_a_signal_while_idle_ends_it_within_two_seconds",
            f"{PROCESS}test_a_signal_with_work_waits_for_it",
            f"{PROCESS}test_a_terminal_that_is_closed_drains_the_server",
        ),
    ),
    Elsewhere(
        "standard streams that are closed, pipes that nobody reads, nohup",
        "it serves and drains, and no file takes a stream's number",
        (f"{PROCESS}test_a_server_that_nobody_hears_serves_and_drains",),
    ),
    Elsewhere(
        "any number on the command line that is infinite, no number, or far beyond use",
        "exit code 2, naming the option",
        ("tests/cli/test_numeric_options.py::test_an_absurd_number_is_a_wrong_use",),
    ),
    Elsewhere(
        "any numeric setting at inf, nan, 1e300, -1, 0 and the like",
        "no start, one sentence with key, value and range; allowed extremes work",
        (
            "tests/config/test_numeric_settings.py::test_every_number_has_both_bounds",
            "tests/config/test_numeric_settings.py::test_absurd_values_are_refused_by_name",
            "tests/config/test_numeric_settings.py::test_absurd_options_of_models_are_refused_by_name",
            "tests/config/test_numeric_settings.py::test_a_server_runs_at_all_extremes_together",
            "tests/config/test_numeric_settings.py::test_sealing_works_at_each_extreme",
        ),
    ),
    Elsewhere(
        "SIGTERM while idle", "exit code 0 in 2 s", (f"{PROCESS}test_a_signal_while_idle_ends_it_within_two_seconds",)
    ),
    Elsewhere(
        "SIGTERM with work", "running calls finish, exit code 0", (f"{PROCESS}test_a_signal_with_work_waits_for_it",)
    ),
    Elsewhere(
        "order of going down",
        "NOT_SERVING first, then UNAVAILABLE",
        (f"{SERVING}lifecycle/test_draining.py::test_health_changes_before_calls_are_refused",),
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
            f"{SERVING}lifecycle/test_draining.py::test_also_those_that_are_read_slowly",
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

FUNCTION = "tests/operator_code/test_function_faults.py::"
REDACTION = f"{SERVING}test_redaction.py::test_a_redaction_that_fails_fails_the_request"

MODELS = (
    Elsewhere(
        "reward function that hangs: sleep, a regex or C code that holds the interpreter's lock, a program it started",
        "that candidate FAILED with `timeout`, its process killed and replaced",
        (
            f"{FUNCTION}test_a_call_that_hangs_is_ended_and_the_next_one_is_scored",
            f"{FUNCTION}test_an_async_call_that_hangs_is_ended_beside_others",
            "tests/offline/rescore/test_rescore.py::test_a_function_that_prints_hangs_and_dies",
        ),
    ),
    Elsewhere(
        "eight calls of a reward function that hang, then a good one",
        "the good one is answered, health SERVING",
        (
            f"{FUNCTION}test_eight_that_hang_and_then_a_good_one",
            f"{FUNCTION}test_a_call_that_nobody_waits_for_does_not_keep_others_waiting",
            f"{PROCESS}test_a_reward_function_that_hangs_fails_its_requests_and_no_others",
        ),
    ),
    Elsewhere(
        "SIGTERM or SIGINT while a reward function hangs; a thread that never ends",
        "exit code 0 within `limits.drain_s` and a margin",
        (
            f"{PROCESS}test_a_signal_ends_a_server_whose_reward_function_hangs",
            f"{PROCESS}test_a_thread_that_never_ends_does_not_keep_the_process",
            f"{FUNCTION}test_close_does_not_wait_for_a_function_that_hangs",
        ),
    ),
    Elsewhere(
        "reward function that raises anything, KeyboardInterrupt and GeneratorExit too",
        "that candidate FAILED; type and place in the server's log, no text",
        (f"{FUNCTION}test_whatever_is_raised_fails_that_completion_without_telling_it",),
    ),
    Elsewhere(
        "reward function that ends or crashes its process (`os._exit`, SIGSEGV, SIGKILL)",
        "that candidate FAILED with `worker died`; the others are scored",
        (
            f"{FUNCTION}test_a_process_that_dies_costs_the_call_that_killed_it",
            f"{FUNCTION}test_many_that_die_are_answered_all_the_same",
        ),
    ),
    Elsewhere(
        "reward function that returns None, a text, an object, a tensor; that prints; a completion that is no Unicode",
        "FAILED, naming the type; stdout stays clean",
        (
            f"{FUNCTION}test_what_is_no_number_names_its_type",
            f"{FUNCTION}test_a_number_that_cannot_be_read",
            f"{FUNCTION}test_what_it_prints_does_not_reach_stdout",
            f"{FUNCTION}test_text_that_is_no_unicode_fails_alone",
        ),
    ),
    Elsewhere(
        "reward function that can be loaded no more; its import hangs; a forward pass hangs",
        "no progress is seen as for an engine: NOT_SERVING, exit code 1",
        (
            f"{FUNCTION}test_a_function_that_can_be_loaded_no_more",
            f"{FUNCTION}test_an_import_that_hangs_is_no_progress",
            f"{REWARD}test_transformers.py::test_a_forward_pass_that_hangs_is_no_progress_whoever_waits",
        ),
    ),
    Elsewhere(
        "redaction that hangs, holds the interpreter's lock, raises anything, ends its process, gives half a character",
        "INTERNAL, nothing logged, the next request is answered",
        (REDACTION,),
    ),
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
            f"{VLLM}test_vllm_reward.py::test_what_fills_the_context_is_scored_and_what_does_not_fit_is_marked",
        ),
    ),
    Elsewhere(
        "weights that are cut, of another shape, incomplete",
        "the start fails in one sentence",
        (
            "tests/models/test_weights.py::test_weights_cut_or_grown",
            "tests/models/test_weights.py::test_pickled_weights",
            "tests/models/test_weights.py::test_code_in_the_model",
            f"{VLLM}test_vllm_lifecycle.py::test_files_that_cannot_be_used",
            f"{VLLM}test_vllm_lifecycle.py::test_weights_that_are_not_all_there",
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
        "kill −9 of a writer at a random moment, 1,000 times",
        "every acknowledged record is there once",
        (f"{LOG}spool/test_spool_faults.py::test_kill_minus_nine_loses_nothing_that_was_acknowledged",),
    ),
    Elsewhere(
        "kill −9 of a whole server while it starts, answers, seals, publishes or expires, under each durability; "
        "10,000 times in the nightly run",
        "every acknowledged answer and observation is there once or has expired; a retry gets the same answer",
        (
            f"{SERVING}test_kill_server.py::test_killed_servers_lose_nothing_and_double_nothing",
            f"{SERVING}test_kill_harvest.py::test_what_was_acknowledged_is_logged_once_after_each_kill",
            f"{SERVING}test_killed_log.py::test_each_fault_is_found",
        ),
    ),
    Elsewhere(
        "power cut at any moment: all states that a disk may be left in",
        "what was acknowledged is there",
        (
            f"{LOG}spool/test_crash_states.py::test_what_was_acknowledged_survives_every_power_cut",
            f"{LOG}remove/test_crash_states_of_removal.py::test_it_is_finished_after_every_power_cut",
        ),
    ),
    Elsewhere(
        "crash between rename and dropping from the spool",
        "no duplicate, nothing lost",
        (
            f"{LOG}seal/test_sealing.py::test_a_crash_at_any_step_is_harmless",
            f"{LOG}seal/test_crash_states_of_sealing.py::test_nothing_is_lost_or_doubled_by_a_power_cut",
        ),
    ),
    Elsewhere(
        "the log's files deleted, truncated, replaced, overwritten or moved away under a running server",
        "UNAVAILABLE at the next commit, NOT_SERVING within a second, exit code 1; the reason names the file",
        (
            f"{SERVING}test_log_files.py::test_it_ends_without_being_asked",
            f"{SERVING}test_log_files.py::test_nothing_is_acknowledged_that_would_be_lost",
            f"{SERVING}test_log_files.py::test_nor_feedback",
            f"{SERVING}test_log_files.py::test_what_cannot_be_read_is_final",
        ),
    ),
    Elsewhere(
        "the log's lock file deleted or replaced, and a second server started",
        "the second is refused, naming the holder; the first ends with exit code 1",
        (f"{SERVING}test_log_files.py::test_a_second_server_is_refused_without_the_lock_file",),
    ),
    Elsewhere(
        "the log's database locked by another program under a running server",
        "answers wait, the server goes on",
        (f"{SERVING}test_log_files.py::test_a_database_that_another_holds_is_not",),
    ),
    Elsewhere(
        "another file where a sealing puts its segment",
        "left alone; the log is closed",
        (
            f"{LOG}seal/test_sealing.py::test_another_segment_of_that_name_is_left_alone_and_closes_the_log",
            f"{LOG}seal/test_sealing.py::test_so_for_feedback",
        ),
    ),
    Elsewhere(
        "publish to itself: into the log's own folder, also by links",
        "no start; the local files stay",
        (
            f"{LOG}publish/test_publishing_places.py::test_a_log_is_not_published_to_itself",
            f"{LOG}publish/test_publishing_places.py::test_a_copy_that_has_become_the_file_itself_is_none",
        ),
    ),
    Elsewhere(
        "the same request id of several callers, erased",
        "refused until one is named; the others' records stay",
        (f"{LOG}remove/test_erase.py::test_ids_of_several_callers_are_not_taken_for_each_other",),
    ),
    Elsewhere(
        "bit flip, truncated or missing segment, foreign file",
        "`bon log verify` names it; readers stop, or leave it out when asked to",
        (
            f"{LOG}verify/test_verify.py::test_any_changed_byte_of_a_segment_is_found",
            f"{LOG}verify/test_verify.py::test_a_truncated_segment",
            f"{LOG}verify/test_verify.py::test_a_missing_segment",
            f"{LOG}verify/test_verify.py::test_a_foreign_file",
            f"{LOG}verify/test_verify.py::test_damaged_pages_of_the_spool",
            f"{LOG}test_log_commands.py::test_damage_is_reported_and_left_out_only_when_asked",
        ),
    ),
    Elsewhere(
        "disk full while sealing and renaming; a real file system that is full",
        "RESOURCE_EXHAUSTED where work is refused, nothing lost, recovers",
        (
            f"{LOG}seal/test_sealing.py::test_a_full_disk_leaves_everything_as_it_was",
            f"{SERVING}test_sealing_server.py::test_a_sealing_that_fails_is_tried_again_and_told_without_content",
            f"{SERVING}test_full_log.py::test_a_file_system_that_is_really_full",
            f"{SERVING}test_full_log.py::test_a_server_may_start_on_a_full_disk",
        ),
    ),
    Elsewhere(
        "fsync error below SQLite",
        "nothing is acknowledged any more; exit code 1",
        (
            f"{LOG}spool/test_spool_faults.py::test_a_failed_sync_is_final",
            f"{SERVING}test_failing_log.py::test_a_failed_disk_stops_the_server",
        ),
    ),
    Elsewhere(
        "reader during write, seal, erase",
        "a consistent prefix",
        (
            f"{LOG}spool/test_spool_faults.py::test_a_reader_in_another_process_always_sees_a_prefix",
            f"{LOG}read/test_reading_segments.py::test_sealing_while_reading_loses_and_doubles_nothing",
            f"{LOG}remove/test_erase.py::test_a_reader_goes_on",
        ),
    ),
    Elsewhere(
        "a thread of the log, or a task that follows engines, ends by a bug",
        "NOT_SERVING, UNAVAILABLE, type and place in the operator's log, exit code 1",
        (
            f"{SERVING}test_dead_threads.py::test_a_loop_that_breaks_ends_the_server",
            f"{SERVING}test_dead_threads.py::test_a_thread_of_the_log_that_breaks_closes_the_log",
            f"{SERVING}test_dead_threads.py::test_nobody_waits_for_a_writer_that_broke",
            f"{SERVING}test_dead_threads.py::test_a_watcher_of_checkpoints_that_breaks",
            f"{SERVING}test_dead_threads.py::test_who_restarts_engines_breaks",
            "tests/system/test_supervision.py::test_threads_and_tasks_are_started_in_one_place",
        ),
    ),
    Elsewhere(
        "no memory for a sealing",
        "nothing is lost, it is tried again and counted",
        (f"{SERVING}test_dead_threads.py::test_want_of_memory_is_tried_again_and_counted",),
    ),
    Elsewhere(
        "the clock a day or forty days ahead, also across restarts",
        "nothing is removed or forgotten; an error line names both times; `bon log expire` exits with code 1",
        (
            f"{LOG}spool/test_clock.py::test_a_clock_that_is_ahead_removes_nothing",
            f"{LOG}spool/test_clock.py::test_a_server_says_so_once_and_goes_on",
            f"{LOG}spool/test_clock.py::test_the_command_refuses_until_the_clock_is_confirmed",
            f"{LOG}spool/test_clock.py::test_local_copies_of_published_segments_stay_while_in_doubt",
        ),
    ),
    Elsewhere(
        "the clock forty days behind, or in 1970",
        "what is written meanwhile is not removed when the clock is right again",
        (
            f"{LOG}spool/test_clock.py::test_a_clock_that_was_behind_makes_nothing_old",
            f"{LOG}spool/test_clock.py::test_a_new_log_with_a_wrong_clock_recovers",
        ),
    ),
    Elsewhere(
        "many ids that are over together, many files that expire, a large erasure",
        "a few hundred rows in a transaction, so commits go on",
        (
            f"{LOG}spool/test_pieces.py::test_ids_that_are_over_together_are_forgotten_in_pieces",
            f"{LOG}spool/test_pieces.py::test_many_files_expire_in_pieces",
            f"{LOG}spool/test_pieces.py::test_an_erasure_goes_in_pieces",
        ),
    ),
    Elsewhere(
        "old schema read by new code",
        "every field as it was",
        (
            f"{LOG}segments/test_golden.py::test_golden_files_are_read",
            f"{LOG}segments/test_columns.py::test_an_older_file_lacks_columns_and_a_newer_one_has_more",
        ),
    ),
)

BOUNDS = f"{SERVING}admission/test_bounds.py::"

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
            f"{SERVING}admission/test_quotas.py::test_a_used_up_quota_is_resource_exhausted_and_says_when",
            f"{SERVING}admission/test_quotas.py::test_many_at_once_cannot_pass_it",
        ),
    ),
    Elsewhere(
        "one of two servers killed under load",
        "every request is answered and counted once",
        (f"{SERVING}test_replicas.py::test_one_of_two_is_killed_and_every_request_is_answered_and_counted_once",),
    ),
)
