# networking.firewall, as NixOS has it on nftables: what is not let in is dropped. The table is nixpkgs' own, rule by rule
# (nixos/modules/services/networking/firewall-nftables.nix), without its comments.
{ config, lib, ... }:
let
  inherit (lib) mkOption optionalString types;
  option = default: type: mkOption { inherit default type; };
  cfg = config.networking.firewall;

  some = mkOption {
    type = types.listOf types.port;
    default = [ ];
    apply = ports: lib.unique (lib.sort lib.lessThan ports);
  };
  ports = {
    allowedTCPPorts = some;
    allowedTCPPortRanges = option [ ] (types.listOf (types.attrsOf types.port));
    allowedUDPPorts = some;
    allowedUDPPortRanges = option [ ] (types.listOf (types.attrsOf types.port));
  };

  open =
    interface: protocol: single: ranges:
    let
      elements =
        map toString single
        ++ map (range: "${toString range.from}-${toString range.to}") ranges;
    in
    optionalString (elements != [ ])
      "${optionalString (interface != null) "iifname ${interface} "}${protocol} dport { ${lib.concatStringsSep ", " elements} } accept\n";
  opened =
    interface: of:
    open interface "tcp" of.allowedTCPPorts of.allowedTCPPortRanges
    + open interface "udp" of.allowedUDPPorts of.allowedUDPPortRanges;
in
{
  options.networking.firewall = ports // {
    enable = option true types.bool;
    backend = option (if config.networking.nftables.enable then "nftables" else "iptables") (
      types.enum [ "iptables" "nftables" "firewalld" ]
    );
    trustedInterfaces = option [ ] (types.listOf types.str);
    interfaces = option { } (types.attrsOf (types.submodule { options = ports; }));
    allowPing = option true types.bool;
    checkReversePath = option true (types.either types.bool (types.enum [ "strict" "loose" ]));
    extraInputRules = option "" types.lines;
    extraCommands = option "" types.lines;
  };

  config = lib.mkIf cfg.enable {
    networking.firewall.trustedInterfaces = [ "lo" ];

    networking.nftables.tables.nixos-fw = lib.mkIf (cfg.backend == "nftables") {
      family = "inet";
      content = ''
        set temp-ports {
          comment "Temporarily opened ports"
          type inet_proto . inet_service
          flags interval
          auto-merge
        }
        ${optionalString (cfg.checkReversePath != false) ''
          chain rpfilter {
            type filter hook prerouting priority mangle + 10; policy drop;
            meta nfproto ipv4 udp sport . udp dport { 67 . 68, 68 . 67 } accept comment "DHCPv4 client/server"
            fib saddr . mark ${optionalString (cfg.checkReversePath != "loose") ". iif"} oif exists accept
            jump rpfilter-allow
          }
        ''}
        chain rpfilter-allow {
        }
        chain input {
          type filter hook input priority filter; policy drop;
          iifname { ${lib.concatMapStringsSep ", " (name: ''"${name}"'') cfg.trustedInterfaces} } accept comment "trusted interfaces"
          icmpv6 type echo-reply accept
          ct state vmap {
            invalid : drop,
            established : accept,
            related : accept,
            new : jump input-allow,
            untracked: jump input-allow,
          }
        }
        chain input-allow {
          ${opened null cfg}
          ${lib.concatStrings (lib.mapAttrsToList opened cfg.interfaces)}
          meta l4proto . th dport @temp-ports accept
          ${optionalString cfg.allowPing ''icmp type echo-request accept comment "allow ping"''}
          icmpv6 type != { nd-redirect, 139 } accept comment "Accept all ICMPv6 messages except redirects and node information queries (type 139).  See RFC 4890, section 4.4."
          ip6 daddr fe80::/64 udp dport 546 accept comment "DHCPv6 client"
          ${cfg.extraInputRules}
        }
      '';
    };
  };
}
