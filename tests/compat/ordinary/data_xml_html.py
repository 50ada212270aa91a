"""XML built, searched and refused; HTML read."""

import html, xml.etree.ElementTree as ET
from html.parser import HTMLParser
from xml.dom import minidom

root = ET.Element("library")
for name, year in (("Emma", 1815), ("Dune & more", 1965)):
    ET.SubElement(root, "book", year=str(year)).text = name
ET.indent(root)
text = ET.tostring(root, encoding="unicode")
print(text)
print([book.text for book in ET.fromstring(text).findall("book[@year='1965']")])
print(minidom.parseString("<a><b c='d'/>e</a>").documentElement.toxml())
try:
    ET.fromstring("<a><b></a>")
except ET.ParseError as error:
    print(error)


class Links(HTMLParser):
    def handle_starttag(self, tag, attrs):
        print(tag, attrs)


Links().feed("<p>See <a href='/x?a=1&amp;b=2'>this</a><br/><img src=y>")
print(html.escape("<a & 'b'>"), html.unescape("&eacute;&#x2603;"))
