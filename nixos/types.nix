# Types of the module's options: what cannot work is refused where it is written, with what to write instead.
{ lib }:
let
  inherit (lib) types;
  inherit (import ./cidr.nix { inherit lib; }) parseAddress parseCidr;
  inherit (import ./dns-name.nix { inherit lib; }) looksLikeName parseName;

  # A string of which `parse` makes { value } or { problem }. The option keeps the string.
  parsed =
    name: description: parse:
    lib.mkOptionType {
      inherit name description;
      descriptionClass = "noun";
      check = lib.isString;
      merge = mergeParsed parse;
    };
  mergeParsed =
    parse:
    loc: defs:
    let
      text = lib.mergeEqualOption loc defs;
      result = parse text;
    in
    if result ? problem then
      throw "The option `${lib.showOption loc}` is wrong: ${result.problem}. Definition values:${lib.options.showDefs defs}"
    else
      text;

  checkPath =
    text:
    let
      reserved = builtins.match ".*([][:space:]%:\"'\\$*?[]).*" text;
    in
    if !lib.hasPrefix "/" text then
      { problem = "`${text}` is relative, and units have no directory to start from; write an absolute path"; }
    else if reserved != null then
      {
        problem = "`${text}` has a character that unit files give a meaning to: `${lib.head reserved}`; use a path without it";
      }
    else if
      lib.any (part: lib.elem part [ "" "." ".." ]) (lib.tail (lib.splitString "/" text))
    then
      {
        problem =
          if text == "/" then
            "`/` is the whole host; name a directory"
          else
            "`${text}` has empty, `.` or `..` parts, or ends in `/`; write it without";
      }
    else
      { value = text; };
in
rec {
  inherit parsed;

  absolutePath = parsed "absolutePath" "absolute path, as a string" checkPath;

  # Where a path without quotes, which Nix copies to the store, is a mistake each time.
  hostPath = absolutePath // {
    check = value: lib.isString value || builtins.isPath value;
    merge = mergeParsed checkHostPath;
  };
  checkHostPath =
    value:
    if builtins.isPath value then
      {
        problem = "`${toString value}` is without quotes, so Nix takes it for a file to copy to the store; write it in quotes, as an absolute path: \"${toString value}\"";
      }
    else
      checkPath value;

  # What `bad`, name -> null or what is wrong with it, finds in the names of the attributes is refused before anything is made of them.
  attrsNamed =
    bad: elemType:
    let
      all = types.attrsOf elemType;
      problems = value: lib.filter (problem: problem != null) (map bad (lib.attrNames value));
    in
    types.addCheck all (value: problems value == [ ] || throw (lib.head (problems value)))
    // {
      # Declaring an option of submodules makes its type anew.
      substSubModules = modules: attrsNamed bad (elemType.substSubModules modules);
    };

  # Units, paths and log identifiers are made of it.
  instanceNameProblem =
    name:
    if builtins.match "[A-Za-z0-9_-]{1,64}" name != null then
      null
    else
      "services.opencode.instances: `${name}` is no instance name; units, paths and log identifiers are made of it. Use 1 to 64 of the letters a to z and A to Z, digits, `-` and `_`.";

  # A user or group as Linux and unit files take it.
  accountName =
    kind:
    parsed "accountName" "name of a ${kind}, at most 31 bytes long" (
      text:
      if builtins.match "[A-Za-z0-9_][A-Za-z0-9_.-]*[$]?" text == null then
        {
          problem = "`${text}` is no name of a ${kind}; use letters, digits, `_`, `.` and `-`, the first of which is no `.` or `-`";
        }
      else if lib.stringLength text > 31 then
        {
          problem = "`${text}` is ${toString (lib.stringLength text)} bytes long, and Linux takes names of at most 31; choose a shorter one";
        }
      else
        { value = text; }
    );

  # What is a network, in each of the lists; `instead` says what to write for a name.
  networks =
    lib.mapAttrs
      (
        _: instead: text:
        if looksLikeName text then { problem = "`${text}` is ${instead text}"; } else parseCidr text
      )
      {
        allowed = _: "a name, and this takes networks; list it in `outboundAllowNames`";
        denied =
          _:
          "a name, and only networks can be denied: the addresses of a name change, and other names share them, so it would still be reached, or others would not be. What no list allows is refused anyhow: allow the names that are wanted, or deny a network, as in `203.0.113.0/24`";
        rule = text: "a name; write `name = \"${text}\"` instead of `cidr`";
      };
  cidr = lib.mapAttrs (_: parsed "cidr" "network in CIDR notation, IPv4 or IPv6, without host bits") networks;

  # A name, or every name below one.
  dnsName = parsed "dnsName" "DNS name, or `*.` and a name for every name below it" parseName;

  presetName = parsed "presetName" "name of a preset" (
    text:
    if presets ? ${text} then
      { value = text; }
    else
      {
        problem = "`${text}` is no preset; there are ${lib.concatStringsSep ", " (lib.attrNames presets)}. List what it stands for in `outboundAllowNames`";
      }
  );
  presets = lib.importJSON ../opencode-egress/src/policy/presets.json;

  address = parsed "address" "IPv4 or IPv6 address" parseAddress;

  # Where a resolver answers: an address, maybe with a port.
  upstream = parsed "upstream" "address of a resolver, maybe with a port, as in \"192.0.2.53:5353\" or \"[2001:db8::53]:5353\"" (
    text:
    let
      bracketed = builtins.match "\\[(.*)]:([0-9]{1,5})" text;
      plain = builtins.match "([^:]*):([0-9]{1,5})" text;
      parts = if bracketed != null then bracketed else plain;
      ip = parseAddress (if parts == null then text else lib.head parts);
      number = lib.toIntBase10 (lib.last parts);
      goodPort = parts == null || (number >= 1 && number <= 65535 && (ip.value.family == 6) == (bracketed != null));
    in
    if ip ? problem || !goodPort then
      {
        problem = "`${text}` is no address of a resolver; write one as in `192.0.2.53`, `192.0.2.53:5353`, `2001:db8::53` or `[2001:db8::53]:5353`";
      }
    else if ip.value.isWildcard then
      { problem = "`${text}` is the address of no machine; write the resolver's own, `127.0.0.1` for one on this host"; }
    else
      { value = text; }
  );

  # Not 0, which is any.
  port = types.ints.between 1 65535;

  portRange =
    types.coercedTo port toString (
      parsed "portRange" "port, or range of ports as in \"8000-8100\"" (
        text:
        let
          ends = lib.splitString "-" text;
          good = end: builtins.match "[0-9]{1,5}" end != null && number end >= 1 && number end <= 65535;
          number = lib.toIntBase10;
          first = lib.head ends;
          final = lib.last ends;
        in
        if lib.length ends > 2 || !lib.all good ends then
          { problem = "`${text}` is no port; write one from 1 to 65535, or a range as in `8000-8100`"; }
        else if number first > number final then
          { problem = "`${text}` runs backwards; write `${final}-${first}`"; }
        else
          { value = text; }
      )
    );

  # Where the daemon serves metrics.
  metricsAddress =
    let
      endpoint = builtins.match "(\\[?)([0-9a-fA-F.:]+)(]?):([0-9]{1,5})";
    in
    parsed "metricsAddress" "loopback address and port, as in \"127.0.0.1:9642\" or \"[::1]:9642\", or path of a Unix socket" (
      text:
      let
        parts = endpoint text;
        ip = parseAddress (lib.elemAt parts 1);
        number = lib.toIntBase10 (lib.elemAt parts 3);
        bracketed = lib.hasInfix ":" (lib.elemAt parts 1);
      in
      if lib.hasPrefix "/" text then
        checkPath text
      else if
        parts == null
        || ip ? problem
        || (lib.head parts == "[") != bracketed
        || (lib.elemAt parts 2 == "]") != bracketed
        || number < 1
        || number > 65535
      then
        { problem = "`${text}` is neither an address with a port, as in `127.0.0.1:9642` or `[::1]:9642`, nor an absolute path"; }
      else if !ip.value.isLoopback || bracketed != (ip.value.family == 6) then
        { problem = "`${text}` is not on loopback, and who reads the metrics learns what was denied to every instance; write `127.0.0.1:${toString number}` and put a proxy before it"; }
      else
        { value = text; }
    );

  # A value of a unit's setting; a list is the setting several times. What comes after a line break would be another setting.
  unitSetting =
    let
      line = types.addCheck types.str (text: !lib.hasInfix "\n" text) // {
        description = "string without line breaks";
      };
      atom = types.oneOf [
        types.bool
        types.int
        line
        types.package
      ];
    in
    types.either atom (types.listOf atom);

  # Text, or the path of a file or directory: in quotes where it is, without them what goes to the store.
  content =
    let
      isPath = text: lib.hasPrefix "/" text && !lib.hasInfix "\n" text;
    in
    types.oneOf [
      (types.addCheck absolutePath isPath)
      types.path
      types.lines
    ];
}
