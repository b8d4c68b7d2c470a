# Every option's type and default.
{ lib, host }:
let
  inherit (lib)
    attrByPath
    concatMapAttrs
    getAttrFromPath
    imap0
    listToAttrs
    mapAttrs'
    nameValuePair
    setAttrByPath
    splitString
    ;
  table = import ./table.nix { inherit lib; } // {
    # A package is what it is.
    package = {
      default = "/nix/store/opencode";
      first = package "one";
      second = package "two";
      bad = [
        "opencode"
        1
      ];
      shown = toString;
    };
  };
  package = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/${name}";
  };

  at = splitString ".";
  set = name: setAttrByPath (at name);
  get = name: getAttrFromPath (at name);

  accepts = name: row: value: (row.shown or lib.id) (get name (host.instance (set name value)));
  expected = row: value: (row.shown or lib.id) value;

  rows = concatMapAttrs (
    name: row:
    {
      "${name}: its default" = {
        got = (row.shown or lib.id) (get name (host.instance { }));
        expected = row.default;
      };
    }
    // listToAttrs (
      imap0 (
        index: value:
        nameValuePair "${name}: refused value ${toString index}" {
          got = host.throws (accepts name (removeAttrs row [ "shown" ]) value);
          expected = true;
        }
      ) row.bad
    )
  ) table;

  # The options that there are, as `a.b`.
  declared =
    let
      names =
        prefix: options:
        lib.concatLists (
          lib.mapAttrsToList (
            name: option:
            if lib.isOption option then [ "${prefix}${name}" ] else names "${prefix}${name}." option
          ) (removeAttrs options [ "_module" ])
        );
      options = (host.evaluate [ ]).options.services.opencode;
    in
    {
      instance = names "" (options.instances.type.getSubOptions [ ]);
      egress = options.egress;
    };

  egress = module: (host.config [ { services.opencode.egress = module; } ]).services.opencode.egress;
  metrics = value: (egress { metrics = value; }).metrics;
  log = name: value: (egress { log.${name} = value; }).log.${name};
  enable = value: (host.config [ { services.opencode.enable = lib.mkForce value; } ]).services.opencode.enable;
in
rows
// {
  "every option is in the table" = {
    got = lib.sort lib.lessThan declared.instance;
    expected = lib.attrNames table;
  };
  "a directory is required" = {
    got = host.throws (host.config [ (host.called "a" { }) ]).services.opencode.instances.a.directory;
    expected = true;
  };
  "a port may be written as a number" = {
    got =
      (lib.head
        (host.instance {
          networkIsolation.outboundAllow = [
            {
              cidr = "10.0.0.0/8";
              ports = [ 443 ];
            }
          ];
        }).networkIsolation.outboundAllow
      );
    expected = {
      cidr = "10.0.0.0/8";
      name = null;
      protocol = null;
      ports = [ "443" ];
      tls = null;
      private = false;
    };
  };
  "a path for a skill is one that units take" = {
    got = map (skill: host.throws (host.instance { skills.x = skill; }).skills.x) [
      "/srv/skills/x"
      "/srv/my skills"
      "/srv/x:y"
      "text: with / and spaces"
      "/command\nas text"
    ];
    expected = [
      false
      true
      true
      false
      false
    ];
  };
  "a skill may be a file" = {
    got = (host.instance { skills.x = ./default.nix; }).skills.x;
    expected = ./default.nix;
  };
  "the daemon's options have defaults" = {
    got = {
      inherit (egress { })
        log
        loopbackMarkBit
        metrics
        markBit
        resolver
        ;
      package = toString (egress { }).package;
    };
    expected = {
      log = {
        intervalSecs = 10;
        burst = 20;
        perSec = 5;
      };
      metrics = null;
      loopbackMarkBit = 28;
      markBit = 25;
      resolver.upstream = [ ];
      package = "/nix/store/opencode-egress";
    };
  };
  "nothing is enabled by itself" = {
    got = (host.evaluate [ ]).config.services.opencode.enable;
    expected = false;
  };
  "enabling is yes or no" = {
    got = map (value: host.throws (enable value)) [
      true
      false
      "yes"
      1
      null
    ];
    expected = [
      false
      false
      true
      true
      true
    ];
  };
  "the daemon's package is a package" = {
    got = map (value: host.throws (egress { package = value; }).package.outPath) [
      (package "other")
      "opencode-egress"
      null
      [ ]
    ];
    expected = [
      false
      true
      true
      true
    ];
  };
  "the daemon's log limits are counts" = {
    got = lib.genAttrs [ "intervalSecs" "burst" "perSec" ] (
      name:
      map (value: host.throws (log name value)) [
        1
        1000000
        0
        1000001
        (-1)
        "1"
        null
      ]
    );
    expected = lib.genAttrs [ "intervalSecs" "burst" "perSec" ] (_: [
      false
      false
      true
      true
      true
      true
      true
    ]);
  };
  "the mark is one bit of 32" = {
    got = map (value: host.throws (egress { markBit = value; }).markBit) [
      0
      31
      32
      (-1)
      "25"
    ];
    expected = [
      false
      false
      true
      true
      true
    ];
  };
  "resolvers are addresses" = {
    got = map (value: host.throws (egress { resolver.upstream = [ value ]; }).resolver) [
      "192.0.2.53"
      "127.0.0.53"
      "192.0.2.53:5353"
      "2001:db8::53"
      "[2001:db8::53]:5353"
      "dns.example.org"
      "192.0.2.53/32"
      "192.0.2.53:0"
      "192.0.2.53:65536"
      "[2001:db8::53]"
      "[192.0.2.53]:53"
      "0.0.0.0"
      "[::]:53"
    ];
    expected = [
      false
      false
      false
      false
      false
      true
      true
      true
      true
      true
      true
      true
      true
    ];
  };
  "metrics are on loopback or a socket" = {
    got = map (value: host.throws (metrics value)) [
      "127.0.0.1:9642"
      "[::1]:9642"
      "/run/opencode-egress/metrics.sock"
      "0.0.0.0:9642"
      "127.0.0.1"
      "127.0.0.1:0"
      "::1:9642"
      "[127.0.0.1]:9642"
      "[::ffff:127.0.0.1]:9642"
      "metrics.sock"
    ];
    expected = [
      false
      false
      false
      true
      true
      true
      true
      true
      true
      true
    ];
  };
}
