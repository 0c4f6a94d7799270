-- GUE (draft-ietf-intarea-gue) for tshark, which does not know it: UDP port 6080, four bytes, then an IP packet.
local gue = Proto("gue", "Generic UDP Encapsulation")

function gue.dissector(buffer, packet, tree)
    tree:add(gue, buffer(0, 4))
    local inner = buffer(1, 1):uint() == 4 and "ip" or "ipv6"
    Dissector.get(inner):call(buffer(4):tvb(), packet, tree)
end

DissectorTable.get("udp.port"):add(6080, gue)
