# Kinds of options that several of an instance's are of. table.nix says what each has.
rec {
  path = [
    "/relative/../x"
    "relative"
    "/"
    "/trailing/"
    "/with space"
    "/with:colon"
    "/percent%n"
    ./.
  ];
  text = [
    1
    [ ]
  ];
  gone = {
    default = null;
    first = "one";
    second = "two";
    bad = [ 1 ];
  };
  flag = {
    default = false;
    first = true;
    second = false;
    bad = [
      "yes"
      1
    ];
  };
  on = flag // {
    default = true;
    first = false;
    second = true;
  };
  networks = {
    default = [ ];
    first = [ "10.0.0.0/8" ];
    second = [
      "192.0.2.0/24"
      "2001:db8::/32"
    ];
    bad = [
      "10.0.0.0/8"
      [ "10.0.0.1/8" ]
      [ "10.0.0.0" ]
      [ "2001:db8::1/32" ]
      [ "example.org" ]
      [ "10.0.0.0/33" ]
    ];
  };
  paths = {
    default = [ ];
    first = [ "/run/one" ];
    second = [
      "/run/two"
      "/run/three"
    ];
    bad = [ "/run/one" ] ++ map (path: [ path ]) path;
  };
  strings = {
    default = [ ];
    first = [ "one" ];
    second = [
      "two"
      "three"
    ];
    bad = [
      "one"
      [ 1 ]
    ];
  };
  script = {
    default = "";
    first = "true";
    second = null;
    bad = text;
  };
  files = {
    default = { };
    first = {
      x = "one";
      y = "kept";
    };
    second.x = "two";
    merged = {
      x = "two";
      y = "kept";
    };
    bad = [
      "text"
      { x = 1; }
    ];
  };
  amount = {
    default = null;
    first = "1G";
    second = 1024;
    bad = [
      "much"
      "1 G"
      0
      { }
    ];
  };
}
