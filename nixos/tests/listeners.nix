# Who may connect to listeners: the policy, the second lock, the host's firewall.
{ lib, host }:
let
  inherit (lib) hasInfix mkForce;
  inherit (import ./said.nix { inherit lib host; }) isolated;
  is = got: expected: { inherit got expected; };

  policyOf =
    config:
    builtins.fromJSON config.environment.etc."opencode-egress/policy.json".source.policy;
  table = config: config.networking.nftables.tables.opencode-egress.content;
  has = line: config: lib.elem line (map lib.trim (lib.splitString "\n" (table config)));
  open = {
    listen.address = "0.0.0.0";
    openFirewall = true;
  };
  closed = { listen.address = "0.0.0.0"; };
in
{
  "a listener is closed" =
    let
      config = host.one (isolated { } // closed);
    in
    is
      {
        ports = config.networking.firewall.allowedTCPPorts;
        policy = (lib.head (policyOf config).instances.a.listen).open;
        lock = has ''iifname != "lo" meta nfproto ipv4 tcp dport 4096 counter drop'' config;
      }
      {
        ports = [ ];
        policy = false;
        lock = true;
      };
  "a listener is opened, and no other" =
    let
      a = lib.recursiveUpdate open (isolated { } // { listen.extraPorts = [ 5173 ]; });
      config = host.two a (isolated { });
    in
    is
      {
        ports = config.networking.firewall.allowedTCPPorts;
        policy = map (listener: listener.open) (policyOf config).instances.a.listen;
        lock = hasInfix "counter drop" (table config);
      }
      {
        ports = [ 4096 ];
        policy = [
          true
          false
          false
        ];
        lock = false;
      };
  "a firewall opens without isolation too" =
    is
      (host.config [
        { networking.firewall.enable = mkForce true; }
        (host.called "a" ({ directory = "/srv/a"; } // open))
      ]).networking.firewall.allowedTCPPorts
      [ 4096 ];
}
