# For ci/examples and ci/load, which source it: an example's server as a child that never outlives us.

server=
log=$(mktemp)
trap clean_up EXIT

clean_up() {
    if [ -n "$server" ]; then
        kill -KILL "$server" || true
        wait "$server" || true
    fi 2>/dev/null
    rm -f "$log"
}

fail() {
    echo "$*" >&2
    echo "--- the server's output:" >&2
    cat "$log" >&2
    exit 1
}

# start_server BACKEND COMMAND...: runs the command with that backend, and waits for its address.
# Sets `server`, the process, and `address`.
start_server() {
    local backend=$1
    shift
    URING_REACTOR_BACKEND=$backend "$@" >"$log" 2>&1 </dev/null &
    server=$!
    for _ in $(seq 100); do
        if address=$(grep -oEm1 '([0-9]+\.){3}[0-9]+:[0-9]+' "$log" | head -n 1) && [ -n "$address" ]; then
            return
        fi
        kill -0 "$server" 2>/dev/null || fail "the server ended before it served anything"
        sleep 0.1
    done
    fail "the server did not print its address within 10 s"
}

# Asks examples/http to end, and expects that it does so in time, in order, without a word of error.
stop_server() {
    kill -TERM "$server"
    await_end
}

await_end() {
    for _ in $(seq 100); do
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    if kill -0 "$server" 2>/dev/null; then
        fail "the server still runs 10 s after SIGTERM"
    fi
    wait "$server" || fail "the server ended with status $?"
    server=
    grep -q '^stopped; the counters:' "$log" || fail "the server printed no counters at its end"
    if grep -qiE 'error|panic|warn' "$log"; then
        fail "the server complained"
    fi
}

# How many descriptors the server has open.
descriptors() {
    find "/proc/$server/fd" -mindepth 1 | wc -l
}
