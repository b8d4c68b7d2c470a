# Hosts to test: each from the smallest configuration that works, changed.
{
  lib,
  # Modules -> a host, with its options: NixOS itself by nixos.nix, otherwise stubs on nixpkgs' own `lib`.
  evaluate ? import ../stub { inherit lib; },
  # The same, built on a machine of another kind.
  cross ? import ../stub {
    inherit lib;
    pkgs = import ../stub/pkgs.nix {
      inherit lib;
      platforms = {
        buildPlatform = lib.systems.elaborate "x86_64-linux";
        hostPlatform = lib.systems.elaborate "aarch64-linux";
      };
    };
  },
}:
rec {
  inherit evaluate cross;

  # The configuration of a host with these modules, and no servers yet.
  config =
    modules:
    (evaluate (
      [
        {
          services.opencode.enable = true;
          networking.nftables.enable = true;
          networking.firewall.enable = false;
          # An operator's.
          users.users.alice.isNormalUser = true;
          users.groups.developers = { };
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

  # The module's units, without `.service`.
  services =
    config: lib.filter (lib.hasPrefix "opencode") (lib.attrNames config.systemd.services);

  # The command that looks whether the second lock is in the kernel.
  isTableCheck = lib.hasInfix "list chain inet opencode-egress rendered-";

  # Messages of the assertions that fail.
  failures =
    config: map (assertion: assertion.message) (lib.filter (assertion: !assertion.assertion) config.assertions);

  # Whether a value cannot be evaluated.
  throws = value: !(builtins.tryEval (builtins.deepSeq value null)).success;
}
