# The bits of the packet mark by which flows to learned addresses and own loopback are known, and what else on the host takes them, as far as its
# configuration says.
{ config, lib }:
let
  inherit (lib) concatMap mapAttrsToList toLower;

  inherit (config.services.opencode) egress;

  valueOf = bit: lib.foldl' (product: _: product * 2) 1 (lib.range 1 bit);
  show = number: "0x${lib.fixedWidthString 8 "0" (toLower (lib.toHexString number))}";

  # The bits of a mark as these options take it: a number or its text, decimal or hexadecimal, maybe with a mask.
  bits =
    mark:
    let
      number =
        text:
        if builtins.match "0x[0-9a-f]{1,8}" text != null then
          (fromTOML "n=${text}").n
        else if builtins.match "[0-9]{1,10}" text != null then
          lib.toIntBase10 text
        else
          0;
    in
    lib.foldl' (all: part: builtins.bitOr all (number part)) 0 (lib.splitString "/" (toLower (toString mark)));

  # Of every name in `set`, the mark that `get` finds, or null.
  each =
    place: set: get:
    mapAttrsToList (name: one: {
      place = place name;
      mark = get one;
    }) set;
  programs =
    mark:
    map (place: {
      inherit place;
      mark = if lib.attrByPath (lib.splitString "." place) false config then mark else null;
    });

  # Options that the host's nixpkgs may not have.
  network = config.systemd.network or { };
  used =
    each (name: "networking.wireguard.interfaces.${name}.fwMark") (config.networking.wireguard.interfaces or { }) (
      interface: interface.fwMark or null
    )
    # Without one, wg-quick takes the number of a routing table: 51820, or the next that is free.
    ++ each (name: "networking.wg-quick.interfaces.${name}.extraOptions.FwMark") (config.networking.wg-quick.interfaces or { }) (
      interface: interface.extraOptions.FwMark or 51820
    )
    ++ each (name: "systemd.network.netdevs.${name}.wireguardConfig.FirewallMark") (network.netdevs or { }) (
      netdev: netdev.wireguardConfig.FirewallMark or null
    )
    ++ concatMap lib.id (
      mapAttrsToList (
        name: one:
        map (rule: {
          place = "systemd.network.networks.${name}.routingPolicyRules";
          mark = rule.FirewallMark or null;
        }) (one.routingPolicyRules or [ ])
      ) (network.networks or { })
    )
    # LinuxFwmarkMask in Tailscale's tsconst/linuxfw.go, TUNNEL_FW_MARK in Mullvad's talpid-core, and kube-proxy's bits to masquerade and to
    # drop, 14 and 15.
    ++ programs "0xff0000" [ "services.tailscale.enable" ]
    ++ programs "0x6d6f6c65" [ "services.mullvad-vpn.enable" ]
    ++ programs "0xc000" [
      "services.k3s.enable"
      "services.kubernetes.proxy.enable"
    ];

  mark =
    bit:
    let
      value = valueOf bit;
    in
    {
      inherit value;
      hex = show value;

      # What has the bit in its marks: { place, shown }.
      collisions = concatMap (
        { place, mark }:
        lib.optional (mark != null && builtins.bitAnd (bits mark) value != 0) {
          inherit place;
          shown = show (bits mark);
        }
      ) used;
    };
in
mark egress.markBit // { loopback = mark egress.loopbackMarkBit; }
