# Isolation beside networking.firewall.
{ lib, host }:
let
  inherit (lib) hasInfix mkForce;
  inherit (import ./said.nix { inherit lib host; }) fails isolated;
  open = {
    listen.address = "0.0.0.0";
    openFirewall = true;
  };
  with' =
    module:
    host.config [
      {
        networking.firewall = {
          enable = mkForce true;
          allowedTCPPorts = [ 22 ];
          allowedTCPPortRanges = [
            {
              from = 8000;
              to = 8100;
            }
          ];
          allowedUDPPorts = [ 51820 ];
          interfaces.eth1.allowedTCPPorts = [ 9100 ];
          extraInputRules = "tcp dport 7 accept";
        };
      }
      (host.called "a" ({ directory = "/srv/a"; } // isolated { } // open))
      module
    ];
  beside = with' { services.opencode.egress.besideFirewall = true; };
  rules =
    name: config: map lib.trim (lib.splitString "\n" config.networking.nftables.tables.${name}.content);
in
{
  "it is refused, with both ways out and what would close" =
    fails (with' { })
      [
        "networking.firewall.enable"
        "instances.a.networkIsolation.enable"
        "services.opencode.egress.besideFirewall = true"
        "networking.firewall.enable = false"
        "TCP 22, 4096, 8000-8100"
        "UDP 51820"
        "TCP 9100 on eth1"
        "ping"
        "extra rules"
      ]
      beside;
  "it is not let be by itself" = {
    got = (host.one { }).services.opencode.egress.besideFirewall;
    expected = false;
  };
  "the port is opened in both, once" = {
    got = {
      firewall = lib.filter (hasInfix "4096") (rules "nixos-fw" beside);
      lock = lib.any (hasInfix "counter drop") (rules "opencode-egress" beside);
      policy =
        (lib.head
          (builtins.fromJSON beside.environment.etc."opencode-egress/policy.json".source.policy)
          .instances.a.listen
        ).open;
    };
    expected = {
      firewall = [ "tcp dport { 22, 4096, 8000-8100 } accept" ];
      lock = false;
      policy = true;
    };
  };
  "a closed port is in neither" =
    let
      config = host.config [
        {
          networking.firewall.enable = mkForce true;
          services.opencode.egress.besideFirewall = true;
        }
        (host.called "a" ({ directory = "/srv/a"; } // isolated { } // { listen.address = "0.0.0.0"; }))
      ];
    in
    {
      got = {
        firewall = lib.any (hasInfix "4096") (rules "nixos-fw" config);
        lock = lib.elem ''iifname != "lo" meta nfproto ipv4 tcp dport 4096 counter drop'' (
          rules "opencode-egress" config
        );
        inherit (config) warnings;
      };
      expected = {
        firewall = false;
        lock = true;
        warnings = [ ];
      };
    };
  # Two tables agree because one of them only takes away: `accept` ends the chain that it is in, and no other.
  "the second lock accepts nothing in the name of the host" = {
    got = lib.filter (hasInfix "policy") (rules "opencode-egress" beside);
    expected = [
      "type filter hook output priority filter; policy accept;"
      "type filter hook input priority filter; policy accept;"
    ];
  };
  # What scenarios run is what NixOS makes.
  "the firewall's table is nixpkgs' own" =
    let
      module = {
        networking.nftables.enable = true;
        networking.firewall = {
          allowedTCPPorts = [ 22 ];
          allowedUDPPorts = [ 53 ];
          allowedUDPPortRanges = [
            {
              from = 60000;
              to = 61000;
            }
          ];
          interfaces.eth1.allowedTCPPorts = [ 9100 ];
          extraInputRules = "tcp dport 7 accept";
        };
      };
      # Rules without comments and spaces.
      bare =
        evaluate:
        lib.filter (line: line != "") (
          map
            (
              line:
              let
                rule = lib.head (lib.splitString " comment " (lib.trim line));
              in
              if lib.hasPrefix "#" rule || lib.hasPrefix "comment " rule then
                ""
              else
                lib.concatStringsSep " " (lib.filter (word: word != "") (lib.splitString " " rule))
            )
            (
              lib.splitString "\n"
                (evaluate [ module ]).config.networking.nftables.tables.nixos-fw.content
            )
        );
    in
    {
      got = bare (import ../stub { inherit lib; });
      expected = bare host.evaluate;
    };
}
