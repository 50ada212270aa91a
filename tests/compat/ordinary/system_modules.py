"""Import one's own modules, packages, zips and reloads; look at source; compile and run text."""

import ast, importlib, inspect, os, pathlib, runpy, sys, types, zipfile

pathlib.Path("mine.py").write_text("VALUE = 1\n\ndef double(x):\n    return x * 2\n")
import mine

print(mine.VALUE, mine.double(4), os.path.basename(mine.__file__), inspect.getsource(mine.double))
pathlib.Path("mine.py").write_text("VALUE = 22222\n")
importlib.invalidate_caches()
print(importlib.reload(mine).VALUE)
package = pathlib.Path("pack/sub")
package.mkdir(parents=True)
(package.parent / "__init__.py").write_text("from .sub import deep\n")
(package / "__init__.py").write_text("")
(package / "deep.py").write_text("from .. import sub\nNAME = __name__\n")
import pack

print(pack.deep.NAME, sorted(n for n in sys.modules if n.startswith("pack")))
with zipfile.ZipFile("lib.zip", "w") as archive:
    archive.writestr("zipped.py", "WHERE = __file__.rpartition('lib.zip')[2]")
sys.path.insert(0, "lib.zip")
import zipped

print(zipped.WHERE, runpy.run_path("mine.py")["VALUE"], runpy.run_module("pack.sub.deep")["NAME"])
module = types.ModuleType("made")
exec(compile(ast.parse("x = [n for n in range(3)]"), "<made>", "exec"), module.__dict__)
print(module.x, eval("x + [9]", module.__dict__))
try:
    import nothing_like_that
except ModuleNotFoundError as error:
    print(error.name)
print(os.path.exists(__file__), open(__file__).read().startswith('"""Import'))
