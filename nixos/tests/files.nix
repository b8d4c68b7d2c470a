# What instances become besides units: users, directories, files.
{ lib, host }:
let
  inherit (lib) attrNames elem hasPrefix head;
  is = got: expected: { inherit got expected; };
  isolation.networkIsolation.enable = true;

  server = config: config.systemd.services.opencode-a;

  two = host.two isolation isolation;
  filesOf = config: config.environment.etc."opencode-instances/a".source.entries;
  textOf = name: config: (filesOf config).${name};
in
{
  "users and groups are made" =
    let
      inherit (host.one { }) users;
    in
    is
      {
        user = lib.getAttrs [ "isSystemUser" "group" "home" "description" ] users.users.opencode-a;
        group = users.groups ? opencode-a;
      }
      {
        user = {
          isSystemUser = true;
          group = "opencode-a";
          home = "/var/lib/opencode/instance-state/a";
          description = "opencode server, instance a";
        };
        group = true;
      };
  "users of others are not" =
    let
      inherit
        (host.one {
          user = "alice";
          group = "users";
        })
        users
        ;
    in
    is (lib.filter (hasPrefix "opencode-") (attrNames users.users ++ attrNames users.groups)) [ ];
  "a long name still makes a good user" =
    let
      name = lib.concatStrings (lib.genList (_: "x") 64);
      config = host.config [ (host.called name { directory = "/srv/x"; }) ];
      user = head (lib.filter (hasPrefix "opencode-") (attrNames config.users.users));
    in
    is {
      length = builtins.stringLength user;
      failures = host.failures config;
      start = hasPrefix "opencode-xxxxxxxxxxxxx-" user;
    } {
      length = 31;
      failures = [ ];
      start = true;
    };
  "the state directory is made, private" =
    is
      (elem "d /var/lib/opencode/instance-state/a 0700 alice users -"
        (host.one { user = "alice"; group = "users"; }).systemd.tmpfiles.rules
      )
      true;

  "declared files" =
    is
      (attrNames (
        filesOf (
          host.one {
            agents.x = "text";
            commands.y = ./default.nix;
            skills.z = "/srv/skills/z";
          }
        )
      ))
      [
        "agents/x"
        "commands/y"
        "opencode.json"
        "skills/z"
      ];
  "text becomes a file" = is (textOf "agents/x" (host.one { agents.x = "text"; })).text "text";
  "a path in quotes stays where it is, and is seen" =
    let
      config = host.one { skills.z = "/srv/skills/z"; };
    in
    is {
      path = textOf "skills/z" config;
      seen = elem "/srv/skills/z" (server config).serviceConfig.BindReadOnlyPaths;
    } {
      path = "/srv/skills/z";
      seen = true;
    };
  "opencode.json" =
    is (builtins.fromJSON (textOf "opencode.json" (host.one { config.model = "x/y"; })).text).model
      "x/y";
  "a ready configuration stays where it is, and is seen" =
    let
      config = host.one { configFile = "/run/secrets/opencode.json"; };
    in
    is {
      path = textOf "opencode.json" config;
      seen = elem "/run/secrets/opencode.json" (server config).serviceConfig.BindReadOnlyPaths;
    } {
      path = "/run/secrets/opencode.json";
      seen = true;
    };

  "two instances have nothing in common" =
    let
      a = two.systemd.services.opencode-a.serviceConfig;
      b = two.systemd.services.opencode-b.serviceConfig;
    in
    is
      {
        writable = lib.intersectLists a.BindPaths b.BindPaths;
        users = a.User != b.User && a.Group != b.Group;
        files = lib.filter (path: hasPrefix "/nix/store/opencode-" path) (
          lib.intersectLists a.BindReadOnlyPaths b.BindReadOnlyPaths
        );
        sees = lib.filter (lib.hasInfix "instance-state/b") (a.BindReadOnlyPaths ++ a.BindPaths);
      }
      {
        writable = [ ];
        users = true;
        files = [ ];
        sees = [ ];
      };
}
