# Hosts to test: each from the smallest configuration that works, changed.
{ lib }:
let
  evaluate = import ../stub { inherit lib; };
in
rec {
  # The configuration of a host with these modules, and no servers yet.
  config =
    modules:
    (evaluate (
      [
        {
          services.opencode.enable = true;
          networking.nftables.enable = true;
          networking.firewall.enable = false;
          # NixOS' own, and an operator's.
          users.users = {
            root = { };
            alice = { };
          };
          users.groups = {
            users = { };
            developers = { };
          };
        }
      ]
      ++ modules
    )).config;

  # One with the server `a`, and what is said of it.
  one =
    instance:
    config [ { services.opencode.instances.a.directory = lib.mkDefault "/srv/a"; } (called "a" instance) ];

  # One with the servers `a` and `b`, that differ in all that they must.
  two =
    a: b:
    config [
      {
        services.opencode.instances = {
          a.directory = lib.mkDefault "/srv/a";
          b.directory = lib.mkDefault "/srv/b";
          b.listen.port = lib.mkDefault 4097;
        };
      }
      (called "a" a)
      (called "b" b)
    ];

  # Definitions of an instance, as a module.
  called = name: instance: { services.opencode.instances.${name} = instance; };

  # The instance `a`, evaluated.
  instance = module: (one module).services.opencode.instances.a;

  # Messages of the assertions that fail.
  failures =
    config: map (assertion: assertion.message) (lib.filter (assertion: !assertion.assertion) config.assertions);

  # Whether a value cannot be evaluated.
  throws = value: !(builtins.tryEval (builtins.deepSeq value null)).success;
}
