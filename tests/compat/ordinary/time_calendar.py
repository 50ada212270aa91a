"""Dates, zones, weeks and durations; nothing of today."""

import calendar, datetime as dt, time, zoneinfo

leap = dt.date(2024, 2, 29)
print(leap.isocalendar(), leap + dt.timedelta(days=366), leap.strftime("%A %d %B %Y %j %U"))
print(dt.datetime.strptime("05/Mar/2023:14:05:59 +0100", "%d/%b/%Y:%H:%M:%S %z").astimezone(dt.UTC))
print(dt.datetime.fromisoformat("2011-11-04T00:05:23Z"), dt.timedelta(hours=-5.5))
for zone in ("Europe/Oslo", "America/St_Johns", "Asia/Kathmandu"):
    print(dt.datetime(2023, 3, 26, 1, 30, tzinfo=dt.UTC).astimezone(zoneinfo.ZoneInfo(zone)))
print(calendar.month(2024, 2), calendar.monthrange(2100, 2), calendar.timegm((2000, 1, 1, 0, 0, 0)))
print(time.gmtime(0)[:6], time.strftime("%H:%M", time.gmtime(3600)), time.tzname)
