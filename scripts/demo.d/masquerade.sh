# shellcheck shell=bash
# scripts/demo masquerade: hosts of a private network and the world outside. Sourced by it.

OUTSIDE=("198.51.100.2" "2001:db8:1::2")
POOL=("203.0.113.100" "2001:db8:f::100")

# asked NODE HOST PATH: as many requests as the other demos send, each on a connection of its own; prints the answers.
asked() {
    lab exec "$1" curl -sS --fail-early --fail --max-time 5 -H 'Connection: close' "http://$(bracketed "$2")$3?[1-$REQUESTS]"
}

# show_asked NODE WHAT HOST PATH EXPECTED: every answer has to be the one that is expected.
show_asked() {
    local answers
    title "$REQUESTS requests from $1 to $2, http://$(bracketed "$3")$4"
    answers=$(asked "$1" "$3" "$4") || failed=1
    sort <<<"$answers" | uniq -c | awk -v what="$6" '{ printf "  %s %s %d times\n", $2, what, $1 }'
    (($(grep -cxF "$5" <<<"$answers") == REQUESTS)) || failed=1
}

main_masquerade() {
    local node n answers pid
    local -a slow=()

    make_lab masquerade
    for node in out1 in1; do start_web "$node"; done
    wait_for_servers out1 in1
    start_gateway

    for n in 0 1; do
        for node in in1 in2; do
            show_asked "$node" "the web server outside" "${OUTSIDE[n]}" /client "${POOL[n]}" "asked it"
        done
        show_asked out2 "a port that leads inside" "${POOL[n]}" ":8080/" in1 answered
        show_asked in2 "the same by its outside address" "${POOL[n]}" ":8080/client" "${POOL[n]}" "asked it"
    done

    # Downloads that are under way while the tables are shown.
    for n in 0 1; do
        for node in in1 in2; do
            lab exec "$node" curl -sgSf --max-time 15 -o /dev/null "http://$(bracketed "${OUTSIDE[n]}")/slow" &
            slow+=($!)
        done
    done
    sleep 0.3
    title "gatun status"
    lab exec gw "$GATUN" status
    title "gatun conntrack list --state ESTABLISHED (the downloads under way)"
    answers=$(lab exec gw "$GATUN" conntrack list --state ESTABLISHED)
    say "$answers"
    (($(grep -c 'dport=80 ' <<<"$answers") >= ${#slow[@]})) || failed=1
    title "gatun nat list (the last mappings of each host inside)"
    answers=$(lab exec gw "$GATUN" nat list)
    say "$(head -n 1 <<<"$answers")"
    for node in 10.40.0.2 10.40.0.3 fd40::2 fd40::3; do
        grep -F "$node" <<<"$answers" | tail -n 2 || failed=1
    done
    # shellcheck disable=SC2034 # read by conclude, of scripts/demo
    for pid in "${slow[@]}"; do wait "$pid" || failed=1; done
    conclude "in1 curl http://${OUTSIDE[0]}/client"
}
