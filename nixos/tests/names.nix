# What is refused by its type, before anything is made of it: names, and paths that would be copied to the store.
{ lib, host }:
let
  inherit (lib) hasInfix;
  types = import ../types.nix { inherit lib; };
  text = length: lib.concatStrings (lib.genList (_: "x") length);
  # Whether a host with such an instance can be evaluated at all.
  refused = module: host.throws (host.failures (host.config [ module ]));
  called = name: refused (host.called name { directory = "/srv/x"; });
  owned =
    setting: name:
    refused {
      users.users.${name} = {
        isSystemUser = true;
        group = "users";
      };
      users.groups.${name} = { };
      services.opencode.instances.a = {
        directory = "/srv/a";
        ${setting} = name;
      };
    };
in
{
  "names of instances" = {
    got = lib.genAttrs [
      "a+b"
      "größe"
      "my project"
      "a.b"
      ""
      "A_b-1"
      (text 64)
      (text 65)
    ] called;
    expected = {
      "a+b" = true;
      "größe" = true;
      "my project" = true;
      "a.b" = true;
      "" = true;
      "A_b-1" = false;
      ${text 64} = false;
      ${text 65} = true;
    };
  };
  # No unit's name is made of it first, which NixOS would refuse in words of its own.
  "the name is refused by the option itself" = {
    got = map (name: host.throws (host.config [ (host.called name { directory = "/srv/x"; }) ]).services.opencode.instances.${name}.listen) [
      "a+b"
      "ab"
    ];
    expected = [
      true
      false
    ];
  };
  "what is said of a name" = {
    got = lib.all (word: hasInfix word (types.instanceNameProblem "my project")) [
      "services.opencode.instances"
      "`my project`"
      "1 to 64"
      "digits"
    ];
    expected = true;
  };
  "names of users and groups" = {
    got = lib.genAttrs [ "user" "group" ] (
      setting:
      map (owned setting) [
        (text 31)
        (text 32)
        "john.doe"
        "john doe"
        "jo%n"
        "-x"
        ""
      ]
    );
    expected = lib.genAttrs [ "user" "group" ] (_: [
      false
      true
      false
      true
      true
      true
      true
    ]);
  };
  "a path without quotes is refused, and one in quotes is not" = {
    got = map (instance: host.throws (host.one instance).systemd.services.opencode-a.serviceConfig) [
      { directory = /srv/a; }
      { directory = "/srv/a"; }
      { environmentFile = ./default.nix; }
      { environmentFiles = [ ./default.nix ]; }
      { stateDir = /var/lib/x; }
      { sandbox.readOnlyPaths = [ /srv/reference ]; }
      { sandbox.readOnlyPaths = [ "/srv/reference" ]; }
      # A file for the store.
      { configFile = ./default.nix; }
    ];
    expected = [
      true
      false
      true
      true
      true
      true
      false
      false
    ];
  };
  "what is said of a path without quotes" = {
    got = lib.filter (word: !hasInfix word (types.checkHostPath /srv/a).problem) [
      "`/srv/a`"
      "copy to the store"
      "write it in quotes"
      "\"/srv/a\""
    ];
    expected = [ ];
  };
  "a script may be null" = {
    got = map (script: builtins.length script.serviceConfig.ExecStart) (
      map (instance: (host.one instance).systemd.services.opencode-a-setup) [
        { preInitScript = null; }
        {
          preInitScript = null;
          postInitScript = "true";
        }
      ]
    );
    expected = [
      1
      2
    ];
  };
}
