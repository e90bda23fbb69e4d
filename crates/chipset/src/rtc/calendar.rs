//! Seconds since 1970 to and from the clock's BCD registers (proleptic Gregorian calendar, UTC).

/// Registers of the fields: second, minute, hour, weekday, day, month, year, century.
pub(super) const TIME_REGISTERS: [u8; 8] = [0, 2, 4, 6, 7, 8, 9, 0x32];

const DAY_SECONDS: i64 = 86_400;
/// Days in 400 years.
const ERA_DAYS: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;
/// First and last second that four BCD year digits can show.
const SECONDS_MIN: i64 = -62_167_219_200;
const SECONDS_MAX: i64 = 253_402_300_799;

/// The time registers in the order of [`TIME_REGISTERS`], BCD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields(pub(super) [u8; 8]);

impl Fields {
    /// Returns the registers for a time, clamped to years 0 to 9999.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let seconds = seconds.clamp(SECONDS_MIN, SECONDS_MAX);
        let days = seconds.div_euclid(DAY_SECONDS);
        let in_day = seconds.rem_euclid(DAY_SECONDS);
        let (year, month, day) = date_of(days);
        // 1970-01-01 was a Thursday; Sunday is 1.
        let weekday = (days + 4).rem_euclid(7) + 1;
        let fields = [
            in_day % 60,
            in_day / 60 % 60,
            in_day / 3600,
            weekday,
            day,
            month,
            year % 100,
            year / 100,
        ];
        Self(fields.map(|field| (field / 10 * 16 + field % 10) as u8))
    }

    /// Returns the time the registers show; `None` where no calendar has it. The weekday does
    /// not count.
    pub(super) fn to_seconds(self) -> Option<i64> {
        let mut fields = [0; 8];
        for (to, bcd) in fields.iter_mut().zip(self.0) {
            let (tens, ones) = (i64::from(bcd >> 4), i64::from(bcd & 15));
            *to = (tens < 10 && ones < 10).then_some(tens * 10 + ones)?;
        }
        let [second, minute, hour, _, day, month, year, century] = fields;
        if second > 59 || minute > 59 || hour > 23 || !(1..=12).contains(&month) {
            return None;
        }
        let year = century * 100 + year;
        let days = days_of(year, month, day);
        (date_of(days) == (year, month, day))
            .then_some(days * DAY_SECONDS + hour * 3600 + minute * 60 + second)
    }
}

/// Returns the days from 1970-01-01 to a date; years count from March so that the leap day is
/// their last.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * ERA_DAYS + day_of_era - EPOCH_DAYS
}

/// Returns year, month and day of a day counted from 1970-01-01.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH_DAYS;
    let era = days.div_euclid(ERA_DAYS);
    let day_of_era = days.rem_euclid(ERA_DAYS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}
