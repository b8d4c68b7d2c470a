# The options of NixOS that the module reads and sets, declared with NixOS' own types as far as those matter here. systemd.nix, nftables.nix
# and firewall.nix have more of it.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  option = default: type: mkOption { inherit default type; };
  strings = option [ ] (types.listOf types.str);

  # With other options, too.
  some =
    options:
    types.submodule {
      freeformType = types.attrsOf types.raw;
      inherit options;
    };

  etc = types.submodule {
    options.source = mkOption { type = types.path; };
    options.mode = option "symlink" types.str;
  };

  # Users and groups have the names of their attributes, unless they are given others.
  named =
    module:
    types.submodule (
      { name, ... }:
      {
        imports = [ module ];
        options.name = option name (types.passwdEntry types.str);
      }
    );
  user =
    { config, ... }:
    {
      options = {
        enable = option true types.bool;
        uid = option null (types.nullOr types.int);
        isSystemUser = option false types.bool;
        isNormalUser = option false types.bool;
        group = option "" types.str;
        home = option "/var/empty" (types.passwdEntry types.path);
        description = option "" (types.passwdEntry types.str);
      };
      config.group = lib.mkIf config.isNormalUser (lib.mkDefault "users");
    };

  ofUser =
    { name, ... }@user:
    [
      {
        assertion = lib.stringLength name < 32;
        message = "Username '${name}' is longer than 31 characters which is not allowed!";
      }
      {
        assertion = user.isNormalUser != (user.isSystemUser || user.uid != null && user.uid < 1000);
        message = "Exactly one of users.users.${name}.isSystemUser and users.users.${name}.isNormalUser must be set.";
      }
      {
        assertion = user.group != "";
        message = "users.users.${name}.group is unset.";
      }
      {
        assertion = user.group == "" || config.users.groups ? ${user.group};
        message = "The following users have a primary group that is undefined: ${name}";
      }
    ];
in
{
  imports = [
    ./systemd.nix
    ./nftables.nix
    ./firewall.nix
  ];

  options = {
    assertions = option [ ] (types.listOf types.unspecified);
    warnings = strings;
    environment.etc = option { } (types.attrsOf etc);
    networking.nameservers = strings;
    # What takes packet marks.
    networking.wireguard.interfaces = option { } (types.attrsOf (some { fwMark = option null (types.nullOr types.str); }));
    networking.wg-quick.interfaces = option { } (types.attrsOf (some { extraOptions = option { } (types.attrsOf types.raw); }));
    systemd.network.netdevs = option { } (types.attrsOf (some { }));
    systemd.network.networks = option { } (types.attrsOf (some { }));
    services.k3s.enable = option false types.bool;
    services.mullvad-vpn.enable = option false types.bool;
    services.tailscale.enable = option false types.bool;
    environment.systemPackages = option [ ] (types.listOf types.package);
    users.users = option { } (types.attrsOf (named user));
    users.groups = option { } (types.attrsOf (named { }));
  };

  config = {
    users.users.root = {
      uid = 0;
      group = "root";
    };
    users.groups = {
      root = { };
      users = { };
    };
    assertions = lib.concatMap ofUser (lib.filter (user: user.enable) (lib.attrValues config.users.users));
  };
}
